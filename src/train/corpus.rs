//! The built-in corpus: short documents from a seeded probabilistic grammar whose entropy is known.
//!
//! Every document is drawn independently of the others, and every text has exactly one derivation, so that the
//! negative log-likelihood of a document is the sum of -ln p over the choices that wrote it. No model of the text can
//! do better on average than that: per character it is the **entropy floor**, an absolute scale for losses.
//!
//! | genre | example | what there is to learn |
//! |---|---|---|
//! | tale | `Nina saw an old fox. She took it home. Bravo, Nina!` | article, pronoun, name recalled |
//! | gift | `Mark lent Tess a red kite. She said: thanks, Mark!` | who of two, pronoun, thing recalled |
//! | stock | `Hugo has 12 plums and eats 11. Now he has 1 plum.` | arithmetic in words, plural |
//! | agreement | `the dog near the barns sleeps, and it is happy.` | number carried past another noun |
//! | sums | `17+25=42, 8+4=12, 93-7=86, 40+2=42.` | addition and subtraction |
//! | count | `count down by 7: 90 83 76 69 62 55.` | sequences |
//! | nest | `nest {[a]({w})}.` | which bracket to close |
//! | flip | `flip abcdefgh: hgfedcba.` | reversal |
//! | sort | `sort 31 75 52 18 44: 18 31 44 52 75.` | order |
//! | extreme | `least 31 75 52 18 44: 18.` | order |
//!
//! The grammar is written once, as functions over an `Interpreter`; interpreters sample it, measure it exactly, and (in
//! tests) bound and enumerate it.

use std::sync::OnceLock;

use crate::random::Philox;

/// What ends every document and appears nowhere else.
const TERMINATOR: &str = "\n";

/// Philox stream of the corpus, apart from other host draws under the same seed.
const STREAM: u32 = 0x636F_7270;

/// One document of the corpus.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// ASCII text, the terminator `"\n"` included, of at most [`Corpus::MAX_DOCUMENT`] characters.
    pub text: String,
    /// Negative log-likelihood of the text, the terminator included, in nats: -ln P(text).
    pub nll: f64,
}

impl Document {
    /// Draws a document.
    #[must_use]
    pub fn sample(random: &mut Philox) -> Self {
        let mut text = String::new();
        let nll = sample_into(random, &mut text);
        Self { text, nll }
    }
}

/// A text made of independent documents, with the exact negative log-likelihood of each.
///
/// ```
/// use walsh::train::corpus::Corpus;
///
/// let corpus = Corpus::generate(7, 10_000);
/// assert!(corpus.text().len() >= 10_000);
/// for (document, nll) in corpus.documents() {
///     assert!(document.ends_with('\n') && document.len() <= Corpus::MAX_DOCUMENT && nll > 0.0);
/// }
/// assert!((corpus.entropy_floor() - Corpus::source_entropy()).abs() < 0.1);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Corpus {
    text: String,
    /// Byte offset of each document in `text`.
    starts: Vec<usize>,
    /// Nats, one per document.
    nll: Vec<f64>,
}

impl Corpus {
    /// Most characters that a document can have, the terminator included.
    pub const MAX_DOCUMENT: usize = 64;

    /// Draws documents until they have at least `min_chars` characters together.
    ///
    /// The same seed gives the same text on every platform, and a longer text of one seed begins with the shorter. The
    /// corpus is empty when `min_chars` is 0. For held-out text take another seed.
    #[must_use]
    pub fn generate(seed: u64, min_chars: usize) -> Self {
        let mut random = Philox::new(seed, STREAM);
        let mut corpus = Self { text: String::new(), starts: Vec::new(), nll: Vec::new() };
        while corpus.text.len() < min_chars {
            corpus.starts.push(corpus.text.len());
            corpus.nll.push(sample_into(&mut random, &mut corpus.text));
        }
        corpus
    }

    /// Returns the documents one after another: ASCII, so that a byte is a character.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the byte offset in the text at which each document starts, in ascending order.
    #[must_use]
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// Returns the negative log-likelihood of document `doc`, its terminator included, in nats.
    ///
    /// # Panics
    ///
    /// Panics if `doc` is not below the number of documents, `starts().len()`.
    #[must_use]
    pub fn nll(&self, doc: usize) -> f64 {
        self.nll[doc]
    }

    /// Iterates over the documents, terminator included, and their negative log-likelihoods in nats.
    pub fn documents(&self) -> impl Iterator<Item = (&str, f64)> {
        let ends = self.starts.iter().skip(1).copied().chain([self.text.len()]);
        self.starts.iter().zip(ends).zip(&self.nll).map(|((&start, end), &nll)| (&self.text[start..end], nll))
    }

    /// Returns the entropy floor of this sample in nats per character: all likelihoods over all characters.
    ///
    /// An empty corpus has the floor 0.
    #[must_use]
    pub fn entropy_floor(&self) -> f64 {
        if self.text.is_empty() {
            return 0.0;
        }
        self.nll.iter().sum::<f64>() / self.text.len() as f64
    }

    /// Returns the floor of the grammar itself: the expected nats of a document over its expected characters.
    ///
    /// It is computed from the grammar, not sampled; [`Corpus::entropy_floor`] of ever longer texts tends to it.
    #[must_use]
    pub fn source_entropy() -> f64 {
        static ENTROPY: OnceLock<f64> = OnceLock::new();
        *ENTROPY.get_or_init(|| {
            let measure = Expectation::of(document);
            measure.nats / measure.chars
        })
    }
}

/// Appends a document to `text` and returns its negative log-likelihood in nats.
fn sample_into(random: &mut Philox, text: &mut String) -> f64 {
    let mut sampler = Sampler { random, text, nll: 0.0 };
    document(&mut sampler);
    sampler.nll
}

// ---------------------------------------------------------------------------------------------------------------------
// Interpreters: what can be done with a grammar.
// ---------------------------------------------------------------------------------------------------------------------

/// Carries out a derivation: writes text, and takes choices.
///
/// What follows from a choice stands in its body, so that an interpreter can go through all alternatives; choices
/// that do not depend on each other stand side by side, which keeps that cheap.
trait Interpreter: Sized {
    /// Writes literal text.
    fn text(&mut self, text: &str);

    /// Takes one of `n` alternatives, each with probability 1/n.
    fn uniform(&mut self, n: usize, body: impl FnMut(&mut Self, usize));

    /// Takes one of several alternatives with probability proportional to its weight, which must be above 0.
    fn choose<T: Copy>(&mut self, options: &[(u32, T)], body: impl FnMut(&mut Self, T));

    /// Takes one of `n` alternatives of probability 1/n which are alike: neither the length nor the probability of
    /// anything that follows depends on the one taken, only the characters do.
    fn alike(&mut self, n: usize) -> usize;

    /// Writes a word of a list, each with the same probability.
    fn word(&mut self, words: &[&str]) {
        self.uniform(words.len(), |i, word| i.text(words[word]));
    }

    /// Writes a number in decimal.
    fn number(&mut self, value: usize) {
        self.text(&value.to_string());
    }

    /// Writes numbers with a space between each two.
    fn numbers(&mut self, values: &[usize]) {
        for (position, &value) in values.iter().enumerate() {
            if position > 0 {
                self.text(" ");
            }
            self.number(value);
        }
    }
}

/// -ln of the probability `weight / total`, in nats.
fn surprise(weight: u32, total: u32) -> f64 {
    (f64::from(total) / f64::from(weight)).ln()
}

/// Sum of the weights of alternatives.
fn total_weight<T>(options: &[(u32, T)]) -> u32 {
    options.iter().map(|(weight, _)| weight).sum()
}

/// Number of alternatives as a weight.
fn count_of(n: usize) -> u32 {
    u32::try_from(n).expect("the grammar's lists are short")
}

/// Draws a derivation and adds up its surprise.
struct Sampler<'a> {
    random: &'a mut Philox,
    text: &'a mut String,
    /// Nats.
    nll: f64,
}

impl Interpreter for Sampler<'_> {
    fn text(&mut self, text: &str) {
        self.text.push_str(text);
    }

    fn uniform(&mut self, n: usize, mut body: impl FnMut(&mut Self, usize)) {
        let taken = self.alike(n);
        body(self, taken);
    }

    fn choose<T: Copy>(&mut self, options: &[(u32, T)], mut body: impl FnMut(&mut Self, T)) {
        let total = total_weight(options);
        let mut rest = self.random.below(total);
        for &(weight, option) in options {
            if rest < weight {
                self.nll += surprise(weight, total);
                return body(self, option);
            }
            rest -= weight;
        }
        unreachable!("a draw below the total weight falls on one of the alternatives");
    }

    fn alike(&mut self, n: usize) -> usize {
        let n = count_of(n);
        self.nll += surprise(1, n);
        self.random.below(n) as usize
    }
}

/// Goes through all derivations and adds up expected nats and characters: the expected nats are the sum over
/// choices of the probability of reaching one times its entropy.
struct Expectation {
    /// Probability of reaching the current point.
    reach: f64,
    nats: f64,
    chars: f64,
}

impl Expectation {
    /// Measures a rule of the grammar.
    fn of(rule: impl FnOnce(&mut Self)) -> Self {
        let mut measure = Self { reach: 1.0, nats: 0.0, chars: 0.0 };
        rule(&mut measure);
        measure
    }

    /// Measures an alternative of probability `weight / total`.
    fn branch(&mut self, weight: u32, total: u32, body: impl FnOnce(&mut Self)) {
        let reach = self.reach;
        self.reach = reach * f64::from(weight) / f64::from(total);
        self.nats += self.reach * surprise(weight, total);
        body(self);
        self.reach = reach;
    }
}

impl Interpreter for Expectation {
    fn text(&mut self, text: &str) {
        self.chars += self.reach * text.len() as f64;
    }

    fn uniform(&mut self, n: usize, mut body: impl FnMut(&mut Self, usize)) {
        for option in 0..n {
            self.branch(1, count_of(n), |i| body(i, option));
        }
    }

    fn choose<T: Copy>(&mut self, options: &[(u32, T)], mut body: impl FnMut(&mut Self, T)) {
        let total = total_weight(options);
        for &(weight, option) in options {
            self.branch(weight, total, |i| body(i, option));
        }
    }

    fn alike(&mut self, n: usize) -> usize {
        self.nats += self.reach * surprise(1, count_of(n));
        0
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The grammar. Text tells derivations apart: by its first word or digit the genre, and a tale, a gift and a stock,
// which all begin with a name, by their first verb; words of one list differ, and none ends within a longer text of
// the same place.
// ---------------------------------------------------------------------------------------------------------------------

#[derive(Clone, Copy)]
enum Genre {
    Tale,
    Gift,
    Stock,
    Agreement,
    Sums,
    Count,
    Nest,
    Flip,
    Sort,
    Extreme,
}

const GENRES: [(u32, Genre); 10] = [
    (4, Genre::Tale),
    (4, Genre::Gift),
    (4, Genre::Stock),
    (4, Genre::Agreement),
    (5, Genre::Sums),
    (2, Genre::Count),
    (3, Genre::Nest),
    (2, Genre::Flip),
    (2, Genre::Sort),
    (2, Genre::Extreme),
];

fn document<I: Interpreter>(i: &mut I) {
    i.choose(&GENRES, |i, genre| match genre {
        Genre::Tale => tale(i),
        Genre::Gift => gift(i),
        Genre::Stock => stock(i),
        Genre::Agreement => agreement(i),
        Genre::Sums => sums(i),
        Genre::Count => count(i),
        Genre::Nest => nest(i),
        Genre::Flip => flip(i),
        Genre::Sort => sort(i),
        Genre::Extreme => extreme(i),
    });
    i.text(TERMINATOR);
}

/// Four letters each, so that names of one gender are alike.
const WOMEN: [&str; 16] = [
    "Alma", "Anna", "Beth", "Edna", "Elsa", "Emma", "Hana", "Mina", "Mona", "Nell", "Nina", "Nora", "Sara", "Suzy",
    "Tess", "Tina",
];
/// Four letters each, so that names of one gender are alike.
const MEN: [&str; 16] = [
    "Abel", "Adam", "Bert", "Eric", "Ezra", "Hank", "Hans", "Hugo", "Mark", "Matt", "Nick", "Noah", "Saul", "Seth",
    "Theo", "Tony",
];

#[derive(Clone, Copy, PartialEq)]
enum Gender {
    She,
    He,
}

impl Gender {
    const EITHER: [(u32, Self); 2] = [(1, Self::She), (1, Self::He)];

    fn names(self) -> &'static [&'static str; 16] {
        match self {
            Self::She => &WOMEN,
            Self::He => &MEN,
        }
    }

    fn pronoun(self) -> &'static str {
        match self {
            Self::She => "she",
            Self::He => "he",
        }
    }

    fn capital_pronoun(self) -> &'static str {
        match self {
            Self::She => "She",
            Self::He => "He",
        }
    }

    fn possessive(self) -> &'static str {
        match self {
            Self::She => "hers",
            Self::He => "his",
        }
    }
}

/// Draws a person out of all 32.
fn person<I: Interpreter>(i: &mut I, mut body: impl FnMut(&mut I, Gender, &'static str)) {
    i.choose(&Gender::EITHER, |i, gender| {
        let name = gender.names()[i.alike(gender.names().len())];
        body(i, gender, name);
    });
}

/// Draws a person out of the 31 others.
fn other_person<I: Interpreter>(
    i: &mut I,
    gender: Gender,
    name: &str,
    mut body: impl FnMut(&mut I, Gender, &'static str),
) {
    let options = Gender::EITHER.map(|(_, other)| (if other == gender { 15 } else { 16 }, other));
    i.choose(&options, |i, other| {
        let names = other.names();
        let mut taken = i.alike(if other == gender { names.len() - 1 } else { names.len() });
        if let Some(itself) = names.iter().position(|&own| own == name)
            && taken >= itself
        {
            taken += 1;
        }
        body(i, other, names[taken]);
    });
}

const ADJECTIVES: [&str; 24] = [
    "big", "calm", "cold", "gray", "icy", "idle", "kind", "loud", "new", "odd", "old", "quick", "rare", "red", "sad",
    "shy", "slow", "soft", "tiny", "ugly", "warm", "wet", "wild", "young",
];

/// Writes an adjective with the article it asks for.
fn a_quality<I: Interpreter>(i: &mut I) {
    i.uniform(ADJECTIVES.len(), |i, adjective| {
        let adjective = ADJECTIVES[adjective];
        i.text(if adjective.starts_with(['a', 'e', 'i', 'o', 'u']) { "an " } else { "a " });
        i.text(adjective);
        i.text(" ");
    });
}

const ENCOUNTERS: [&str; 10] = ["drew", "fed", "found", "got", "hid", "kept", "lost", "met", "saw", "won"];
const CREATURES: [&str; 32] = [
    "ant", "bat", "bee", "cat", "cow", "crab", "deer", "dog", "duck", "elk", "fox", "frog", "goat", "hare", "hen",
    "horse", "jay", "lamb", "lion", "mole", "moth", "mouse", "newt", "owl", "pig", "seal", "swan", "toad", "wolf",
    "worm", "yak", "zebra",
];
const DEEDS: [&str; 12] = [
    "fled",
    "gave it tea",
    "hugged it",
    "left",
    "let it go",
    "named it",
    "ran home",
    "sang to it",
    "sat by it",
    "smiled",
    "took it home",
    "waved",
];
const CALLS: [&str; 8] = ["Alas", "Bravo", "Encore", "Hooray", "Hush", "Nice", "Sorry", "Thanks"];

/// `Nina saw an old fox. She took it home. Bravo, Nina!`
fn tale<I: Interpreter>(i: &mut I) {
    person(i, |i, gender, name| {
        i.text(name);
        i.text(" ");
        i.word(&ENCOUNTERS);
        i.text(" ");
        a_quality(i);
        i.word(&CREATURES);
        i.text(". ");
        i.text(gender.capital_pronoun());
        i.text(" ");
        i.word(&DEEDS);
        i.text(". ");
        i.word(&CALLS);
        i.text(", ");
        i.text(name);
        i.text("!");
    });
}

const HANDOVERS: [&str; 6] = ["bought", "gave", "lent", "made", "sent", "sold"];
const THINGS: [&str; 24] = [
    "bell", "boat", "book", "cake", "coin", "cup", "doll", "drum", "flag", "gift", "harp", "hat", "jar", "key", "kite",
    "lamp", "map", "mug", "pen", "quilt", "ring", "rope", "scarf", "vest",
];

#[derive(Clone, Copy)]
enum Reply {
    Thanks,
    Has,
    Owns,
}

const REPLIES: [(u32, Reply); 3] = [(3, Reply::Thanks), (2, Reply::Has), (2, Reply::Owns)];

/// `Mark lent Tess a red kite. She said: thanks, Mark!`; the pronoun is the receiver's.
fn gift<I: Interpreter>(i: &mut I) {
    person(i, |i, gender, giver| {
        i.text(giver);
        i.text(" ");
        i.word(&HANDOVERS);
        i.text(" ");
        other_person(i, gender, giver, |i, gender, receiver| {
            i.text(receiver);
            i.text(" ");
            a_quality(i);
            i.uniform(THINGS.len(), |i, thing| {
                let thing = THINGS[thing];
                i.text(thing);
                i.text(". ");
                i.choose(&REPLIES, |i, reply| match reply {
                    Reply::Thanks => {
                        i.text(gender.capital_pronoun());
                        i.text(" said: thanks, ");
                        i.text(giver);
                        i.text("!");
                    }
                    Reply::Has => {
                        i.text("Now ");
                        i.text(gender.pronoun());
                        i.text(" has the ");
                        i.text(thing);
                        i.text(".");
                    }
                    Reply::Owns => {
                        i.text("Now the ");
                        i.text(thing);
                        i.text(" is ");
                        i.text(gender.possessive());
                        i.text(".");
                    }
                });
            });
        });
    });
}

/// Singular, four letters each, so that they are alike; the plural adds s.
const GOODS: [&str; 12] =
    ["bead", "bean", "card", "coin", "date", "leek", "lime", "pear", "plum", "ring", "seed", "tart"];

#[derive(Clone, Copy)]
enum Trade {
    Gain,
    Loss,
}

const TRADES: [(u32, Trade); 2] = [(1, Trade::Gain), (1, Trade::Loss)];
const GAINS: [&str; 4] = ["buys", "finds", "gets", "wins"];
const LOSSES: [&str; 4] = ["eats", "gives", "loses", "sells"];

/// `Hugo has 12 plums and eats 11. Now he has 1 plum.`; the first number is 2..=40, a gain 2..=40, a loss leaves at
/// least 1.
fn stock<I: Interpreter>(i: &mut I) {
    person(i, |i, gender, name| {
        i.text(name);
        i.text(" has ");
        let good = GOODS[i.alike(GOODS.len())];
        i.uniform(39, |i, had| {
            let had = had + 2;
            i.number(had);
            i.text(" ");
            i.text(good);
            i.text("s and ");
            let rest = |i: &mut I, amount: usize, has: usize| {
                i.text(" ");
                i.number(amount);
                i.text(". Now ");
                i.text(gender.pronoun());
                i.text(" has ");
                i.number(has);
                i.text(" ");
                i.text(good);
                i.text(if has == 1 { "." } else { "s." });
            };
            i.choose(&TRADES, |i, trade| match trade {
                Trade::Gain => {
                    i.word(&GAINS);
                    i.uniform(39, |i, amount| rest(i, amount + 2, had + amount + 2));
                }
                Trade::Loss => {
                    i.word(&LOSSES);
                    i.uniform(had - 1, |i, amount| rest(i, amount + 1, had - amount - 1));
                }
            });
        });
    });
}

#[derive(Clone, Copy, PartialEq)]
enum Number {
    Singular,
    Plural,
}

impl Number {
    const EITHER: [(u32, Self); 2] = [(1, Self::Singular), (1, Self::Plural)];

    /// Ending of a noun.
    fn noun(self) -> &'static str {
        if self == Self::Plural { "s" } else { "" }
    }

    /// Ending of a verb.
    fn verb(self) -> &'static str {
        if self == Self::Singular { "s" } else { "" }
    }
}

#[derive(Clone, Copy)]
enum Modifier {
    None,
    Place,
    Relative,
}

#[derive(Clone, Copy)]
enum Tail {
    None,
    Adverb,
    Clause,
}

const SUBJECTS: [&str; 16] = [
    "ant", "bat", "bee", "bird", "cat", "cow", "crab", "dog", "duck", "frog", "goat", "hen", "lamb", "mole", "owl",
    "pig",
];
const PLACES: [&str; 12] =
    ["barn", "field", "gate", "hill", "house", "lake", "pond", "rock", "shed", "tree", "wall", "well"];
const PREPOSITIONS: [&str; 6] = ["above", "behind", "below", "beside", "by", "near"];
const TRANSITIVES: [&str; 8] = ["chase", "fear", "hear", "help", "know", "like", "see", "trust"];
const INTRANSITIVES: [&str; 12] =
    ["dance", "eat", "hide", "jump", "look", "play", "rest", "run", "sing", "sleep", "swim", "wait"];
const ADVERBS: [&str; 8] = ["again", "alone", "first", "here", "now", "often", "there", "today"];
const MOODS: [&str; 12] =
    ["angry", "calm", "cold", "fine", "glad", "happy", "lost", "proud", "sad", "tired", "weak", "wet"];

const WITH_ADJECTIVE: [(u32, bool); 2] = [(1, true), (1, false)];
const MODIFIERS: [(u32, Modifier); 3] = [(1, Modifier::None), (4, Modifier::Place), (3, Modifier::Relative)];
const TAILS: [(u32, Tail); 3] = [(2, Tail::None), (3, Tail::Adverb), (3, Tail::Clause)];
const CONJUNCTIONS: [&str; 2] = ["and", "but"];

/// Writes a noun in either number.
fn noun<I: Interpreter>(i: &mut I, nouns: &[&str], mut body: impl FnMut(&mut I, Number)) {
    i.word(nouns);
    i.choose(&Number::EITHER, |i, number| {
        i.text(number.noun());
        body(i, number);
    });
}

/// `the dog near the barns sleeps, and it is happy.`
fn agreement<I: Interpreter>(i: &mut I) {
    i.text("the ");
    i.choose(&WITH_ADJECTIVE, |i, with| {
        if with {
            i.word(&ADJECTIVES);
            i.text(" ");
        }
    });
    noun(i, &SUBJECTS, |i, number| {
        i.text(" ");
        i.choose(&MODIFIERS, |i, modifier| match modifier {
            Modifier::None => {}
            Modifier::Place => {
                i.word(&PREPOSITIONS);
                i.text(" the ");
                noun(i, &PLACES, |_, _| {});
                i.text(" ");
            }
            Modifier::Relative => {
                i.text("that the ");
                noun(i, &SUBJECTS, |i, inner| {
                    i.text(" ");
                    i.word(&TRANSITIVES);
                    i.text(inner.verb());
                });
                i.text(" ");
            }
        });
        i.word(&INTRANSITIVES);
        i.text(number.verb());
        i.choose(&TAILS, |i, tail| match tail {
            Tail::None => {}
            Tail::Adverb => {
                i.text(" ");
                i.word(&ADVERBS);
            }
            Tail::Clause => {
                i.text(", ");
                i.word(&CONJUNCTIONS);
                i.text(if number == Number::Singular { " it is " } else { " they are " });
                i.word(&MOODS);
            }
        });
        i.text(".");
    });
}

#[derive(Clone, Copy)]
enum Digits {
    One,
    Two,
}

const DIGITS: [(u32, Digits); 2] = [(1, Digits::One), (3, Digits::Two)];

#[derive(Clone, Copy)]
enum Operation {
    Add,
    Subtract,
}

const OPERATIONS: [(u32, Operation); 2] = [(2, Operation::Add), (1, Operation::Subtract)];

/// Draws a number in 1..=99, of one digit less often than of two.
fn operand<I: Interpreter>(i: &mut I, mut body: impl FnMut(&mut I, usize)) {
    i.choose(&DIGITS, |i, digits| match digits {
        Digits::One => i.uniform(9, |i, value| body(i, value + 1)),
        Digits::Two => i.uniform(90, |i, value| body(i, value + 10)),
    });
}

/// `17+25=42` of two operands, or `93-7=86`, which takes 1..=9 from 10..=99.
fn equation<I: Interpreter>(i: &mut I) {
    i.choose(&OPERATIONS, |i, operation| match operation {
        Operation::Add => operand(i, |i, a| {
            operand(i, |i, b| {
                i.number(a);
                i.text("+");
                i.number(b);
                i.text("=");
                i.number(a + b);
            });
        }),
        Operation::Subtract => i.uniform(90, |i, a| {
            i.uniform(9, |i, b| {
                let (a, b) = (a + 10, b + 1);
                i.number(a);
                i.text("-");
                i.number(b);
                i.text("=");
                i.number(a - b);
            });
        }),
    });
}

/// `17+25=42, 8+4=12, 93-7=86, 40+2=42.` of 4 or 5 equations.
fn sums<I: Interpreter>(i: &mut I) {
    for _ in 0..3 {
        equation(i);
        i.text(", ");
    }
    equation(i);
    i.uniform(2, |i, more| {
        for _ in 0..more {
            i.text(", ");
            equation(i);
        }
    });
    i.text(".");
}

#[derive(Clone, Copy)]
enum Direction {
    Up,
    Down,
}

const DIRECTIONS: [(u32, Direction); 2] = [(1, Direction::Up), (1, Direction::Down)];

/// `count down by 7: 90 83 76 69 62 55.` of 6 to 9 numbers: up from 0..=26, or down from 73..=99, by 1 to 9.
fn count<I: Interpreter>(i: &mut I) {
    i.choose(&DIRECTIONS, |i, direction| {
        i.text(match direction {
            Direction::Up => "count up by ",
            Direction::Down => "count down by ",
        });
        i.uniform(9, |i, step| {
            let step = step + 1;
            i.number(step);
            i.text(": ");
            i.uniform(27, |i, start| {
                i.uniform(4, |i, more| {
                    let values: Vec<usize> = (0..6 + more)
                        .map(|term| match direction {
                            Direction::Up => start + term * step,
                            Direction::Down => start + 73 - term * step,
                        })
                        .collect();
                    i.numbers(&values);
                    i.text(".");
                });
            });
        });
    });
}

#[derive(Clone, Copy)]
enum Content {
    Letter,
    Groups(usize),
}

const BRACKETS: [(&str, &str); 3] = [("(", ")"), ("[", "]"), ("{", "}")];
const LETTERS_IN_BRACKETS: [&str; 8] = ["a", "b", "c", "d", "w", "x", "y", "z"];

/// What a group holds, by the number of groups around it.
const CONTENTS: [&[(u32, Content)]; 4] = [
    &[(1, Content::Groups(2))],
    &[(1, Content::Letter), (1, Content::Groups(1)), (3, Content::Groups(2)), (3, Content::Groups(3))],
    &[(3, Content::Letter), (1, Content::Groups(1)), (4, Content::Groups(2))],
    &[(1, Content::Letter)],
];

/// A group of matching brackets inside `depth` others.
fn group<I: Interpreter>(i: &mut I, depth: usize) {
    let (open, close) = BRACKETS[i.alike(BRACKETS.len())];
    i.text(open);
    i.choose(CONTENTS[depth], |i, content| match content {
        Content::Letter => i.word(&LETTERS_IN_BRACKETS),
        Content::Groups(n) => (0..n).for_each(|_| group(i, depth + 1)),
    });
    i.text(close);
}

/// `nest {[a]({w})}.`
fn nest<I: Interpreter>(i: &mut I) {
    i.text("nest ");
    group(i, 0);
    i.text(".");
}

/// `flip abcdefgh: hgfedcba.` of 8 to 16 letters out of a to p.
fn flip<I: Interpreter>(i: &mut I) {
    i.text("flip ");
    i.uniform(9, |i, more| {
        let letters: String = (0..8 + more).map(|_| char::from(b"abcdefghijklmnop"[i.alike(16)])).collect();
        i.text(&letters);
        i.text(": ");
        i.text(&letters.chars().rev().collect::<String>());
        i.text(".");
    });
}

/// Draws 5 to 8 numbers in 10..=99, repetitions allowed.
fn list<I: Interpreter>(i: &mut I, mut body: impl FnMut(&mut I, Vec<usize>)) {
    i.uniform(4, |i, more| {
        let values = (0..5 + more).map(|_| 10 + i.alike(90)).collect();
        body(i, values);
    });
}

/// `sort 31 75 52 18 44: 18 31 44 52 75.`
fn sort<I: Interpreter>(i: &mut I) {
    list(i, |i, mut values| {
        i.text("sort ");
        i.numbers(&values);
        i.text(": ");
        values.sort_unstable();
        i.numbers(&values);
        i.text(".");
    });
}

#[derive(Clone, Copy)]
enum Extreme {
    Most,
    Least,
}

const EXTREMES: [(u32, Extreme); 2] = [(1, Extreme::Most), (1, Extreme::Least)];

/// `least 31 75 52 18 44: 18.`
fn extreme<I: Interpreter>(i: &mut I) {
    i.choose(&EXTREMES, |i, extreme| {
        list(i, |i, values| {
            let (name, value) = match extreme {
                Extreme::Most => ("most ", values.iter().max()),
                Extreme::Least => ("least ", values.iter().min()),
            };
            i.text(name);
            i.numbers(&values);
            i.text(": ");
            i.number(*value.expect("a list has at least five numbers"));
            i.text(".");
        });
    });
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Length of the longest derivation, in characters.
    #[derive(Default)]
    struct Longest(usize);

    impl Interpreter for Longest {
        fn text(&mut self, text: &str) {
            self.0 += text.len();
        }

        fn uniform(&mut self, n: usize, mut body: impl FnMut(&mut Self, usize)) {
            let before = self.0;
            let longest = (0..n).map(|option| {
                self.0 = before;
                body(self, option);
                self.0
            });
            self.0 = longest.max().expect("a choice has alternatives");
        }

        fn choose<T: Copy>(&mut self, options: &[(u32, T)], mut body: impl FnMut(&mut Self, T)) {
            self.uniform(options.len(), |i, option| body(i, options[option].1));
        }

        fn alike(&mut self, _: usize) -> usize {
            0
        }
    }

    /// Follows a script of alternatives, then the first ones; going on to the next script enumerates all derivations.
    struct Replay {
        /// Alternative taken and number of alternatives, per choice.
        script: Vec<(usize, usize)>,
        position: usize,
        text: String,
        probability: f64,
    }

    impl Replay {
        /// Calls `each` with the text and the probability of every derivation of a rule.
        fn all(rule: impl Fn(&mut Self), mut each: impl FnMut(String, f64)) {
            let mut replay = Self { script: Vec::new(), position: 0, text: String::new(), probability: 1.0 };
            loop {
                (replay.position, replay.probability) = (0, 1.0);
                rule(&mut replay);
                assert_eq!(replay.position, replay.script.len(), "the same choices lead to the same choice");
                each(std::mem::take(&mut replay.text), replay.probability);
                while replay.script.pop_if(|(taken, n)| *taken + 1 == *n).is_some() {}
                match replay.script.last_mut() {
                    Some((taken, _)) => *taken += 1,
                    None => return,
                }
            }
        }

        fn next(&mut self, n: usize) -> usize {
            if self.position == self.script.len() {
                self.script.push((0, n));
            }
            let (taken, of) = self.script[self.position];
            assert_eq!(of, n, "the same choices lead to the same choice");
            self.position += 1;
            taken
        }
    }

    impl Interpreter for Replay {
        fn text(&mut self, text: &str) {
            self.text.push_str(text);
        }

        fn uniform(&mut self, n: usize, mut body: impl FnMut(&mut Self, usize)) {
            let taken = self.alike(n);
            body(self, taken);
        }

        fn choose<T: Copy>(&mut self, options: &[(u32, T)], mut body: impl FnMut(&mut Self, T)) {
            let taken = self.next(options.len());
            self.probability *= f64::from(options[taken].0) / f64::from(total_weight(options));
            body(self, options[taken].1);
        }

        fn alike(&mut self, n: usize) -> usize {
            self.probability /= n as f64;
            self.next(n)
        }
    }

    /// Enumerates a rule: its texts must differ, its probabilities must sum to 1, and the expectation must be the sum.
    fn check_exhaustively(name: &str, count: usize, rule: impl Fn(&mut Replay), measure: Expectation) {
        let mut texts = HashMap::new();
        let (mut total, mut nats, mut chars) = (0.0, 0.0, 0.0);
        Replay::all(rule, |text, probability| {
            total += probability;
            nats -= probability * probability.ln();
            chars += probability * text.len() as f64;
            let twice = texts.insert(text.clone(), probability);
            assert!(twice.is_none(), "{name}: two derivations of {text:?}");
        });
        assert_eq!(texts.len(), count, "{name}");
        // At most 10^5 terms: each addition to a sum below 100 errs by at most 100 x 2^-53.
        for (what, got, expected) in
            [("sum", total, 1.0), ("nats", measure.nats, nats), ("chars", measure.chars, chars)]
        {
            assert!((got - expected).abs() < 1e-9, "{name}, {what}: {got}, expected {expected}");
        }
    }

    #[test]
    fn enumerable_rules_are_unambiguous_and_measured_exactly() {
        check_exhaustively("equation", 99 * 99 + 90 * 9, equation, Expectation::of(equation));
        check_exhaustively("count", 2 * 9 * 27 * 4, count, Expectation::of(count));
        check_exhaustively("quality", 24, a_quality, Expectation::of(a_quality));
        let innermost = 3 * 8;
        check_exhaustively("innermost group", innermost, |i| group(i, 3), Expectation::of(|i| group(i, 3)));
        let inner = 3 * (8 + innermost + innermost * innermost);
        check_exhaustively("inner group", inner, |i| group(i, 2), Expectation::of(|i| group(i, 2)));
        let pair = |i: &mut Replay| person(i, |i, g, a| other_person(i, g, a, |i, _, b| i.text(&format!("{a} {b}"))));
        let measure =
            Expectation::of(|i| person(i, |i, g, a| other_person(i, g, a, |i, _, b| i.text(&format!("{a} {b}")))));
        check_exhaustively("two people", 32 * 31, pair, measure);
    }

    #[test]
    fn longest_document_is_the_bound() {
        let mut longest = Longest::default();
        document(&mut longest);
        assert_eq!(longest.0, Corpus::MAX_DOCUMENT, "the bound holds and is reached");
    }

    #[test]
    fn words_that_are_taken_as_alike_have_one_length() {
        for words in [WOMEN.as_slice(), &MEN, &GOODS] {
            assert!(words.iter().all(|word| word.len() == 4), "{words:?}");
        }
        assert!(BRACKETS.iter().all(|(open, close)| open.len() == 1 && close.len() == 1));
    }
}
