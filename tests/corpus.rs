//! The built-in corpus against an independent parser: the grammar is written out here a second time, from the reader's
//! side, and each document's probability is derived again from its text alone.

use std::collections::BTreeSet;

use walsh::random::Philox;
use walsh::train::corpus::{Corpus, Document};

/// Seeds of the texts that are parsed, and their least length: over 20,000 documents together.
const SEEDS: [u64; 4] = [0, 1, 0x5EED, u64::MAX];
const CHARS: usize = 300_000;

// ---------------------------------------------------------------------------------------------------------------------
// Parser: all readings of a text at once. A reading that does not fit is dropped.
// ---------------------------------------------------------------------------------------------------------------------

/// One way to read the text up to `rest`.
#[derive(Clone)]
struct Reading<'t> {
    rest: &'t str,
    /// Nats of what was read.
    nll: f64,
    /// Passages that were given a name.
    seen: Vec<(&'static str, &'t str)>,
}

impl<'t> Reading<'t> {
    fn get(&self, name: &str) -> &'t str {
        self.seen.iter().rev().find(|(seen, _)| *seen == name).expect("a passage is named before it is used").1
    }

    /// Value of a passage of digits.
    fn int(&self, name: &str) -> i64 {
        self.get(name).parse().expect("digits were read")
    }

    /// Values of a passage of numbers with single spaces between; nothing if it is anything else.
    fn ints(&self, name: &str) -> Option<Vec<i64>> {
        self.get(name)
            .split(' ')
            .map(|word| word.parse().ok().filter(|value: &i64| value.to_string() == word))
            .collect()
    }

    /// Reads `n` bytes, named.
    fn take(mut self, name: &'static str, n: usize) -> Self {
        let (passage, rest) = self.rest.split_at(n);
        self.rest = rest;
        self.seen.push((name, passage));
        self
    }
}

struct Readings<'t>(Vec<Reading<'t>>);

impl<'t> Readings<'t> {
    fn of(text: &'t str) -> Self {
        Self(vec![Reading { rest: text, nll: 0.0, seen: Vec::new() }])
    }

    fn lit(self, literal: &str) -> Self {
        Self(
            self.0
                .into_iter()
                .filter_map(|r| r.rest.strip_prefix(literal).map(|rest| Reading { rest, ..r.clone() }))
                .collect(),
        )
    }

    /// Multiplies the probability of each reading; 0 drops it.
    fn weigh(self, probability: impl Fn(&Reading<'t>) -> f64) -> Self {
        let weighed = self.0.into_iter().filter_map(|mut r| {
            let p = probability(&r);
            r.nll -= p.ln();
            (p > 0.0).then_some(r)
        });
        Self(weighed.collect())
    }

    fn times(self, probability: f64) -> Self {
        self.weigh(|_| probability)
    }

    /// Any of some words that `|` separates, at a probability of one over their number.
    fn one_of(self, name: &'static str, words: &'static str) -> Self {
        let n = words.split('|').count() as f64;
        let read = self.0.into_iter().flat_map(|r| {
            let fitting = words.split('|').filter(|word| r.rest.starts_with(word));
            fitting.map(|word| r.clone().take(name, word.len())).collect::<Vec<_>>()
        });
        Self(read.collect()).times(1.0 / n)
    }

    /// The longest run of some characters, one at least.
    fn run(self, name: &'static str, of: impl Fn(char) -> bool) -> Self {
        let read = self.0.into_iter().filter_map(|r| {
            let n = r.rest.find(|c| !of(c)).unwrap_or(r.rest.len());
            (n > 0).then(|| r.take(name, n))
        });
        Self(read.collect())
    }

    /// A number in decimal, without leading zeros.
    fn number(self, name: &'static str) -> Self {
        self.run(name, |c| c.is_ascii_digit())
            .given(|r| r.get(name).len() < 4 && r.int(name).to_string() == r.get(name))
    }

    fn given(self, condition: impl Fn(&Reading<'t>) -> bool) -> Self {
        self.weigh(|r| f64::from(u8::from(condition(r))))
    }

    /// The readings of several alternatives, each with its probability.
    fn either<const N: usize>(self, alternatives: [(f64, &dyn Fn(Self) -> Self); N]) -> Self {
        let read = alternatives.iter().map(|(p, alternative)| alternative(Self(self.0.clone())).times(*p).0);
        Self(read.flatten().collect())
    }

    /// A literal that depends on what was read.
    fn lit_by(self, literal: impl Fn(&Reading<'t>) -> String) -> Self {
        Self(self.0.into_iter().flat_map(|r| Self(vec![r.clone()]).lit(&literal(&r)).0).collect())
    }

    // The grammar.

    fn person(self, name: &'static str) -> Self {
        const ALL: &str = "Abel|Adam|Bert|Eric|Ezra|Hank|Hans|Hugo|Mark|Matt|Nick|Noah|Saul|Seth|Theo|Tony|\
                           Alma|Anna|Beth|Edna|Elsa|Emma|Hana|Mina|Mona|Nell|Nina|Nora|Sara|Suzy|Tess|Tina";
        self.one_of(name, ALL)
    }

    fn quality(self) -> Self {
        self.either([
            (5.0 / 24.0, &|p| p.lit("an ").one_of("adjective", "icy|idle|odd|old|ugly")),
            (19.0 / 24.0, &|p| {
                p.lit("a ").one_of(
                    "adjective",
                    "wild|young|warm|wet|tiny|soft|slow|shy|sad|red|rare|quick|new|loud|kind|gray|cold|calm|big",
                )
            }),
        ])
        .lit(" ")
    }

    fn tale(self) -> Self {
        self.person("who")
            .lit(" ")
            .one_of("", "saw|met|got|fed|hid|won|drew|kept|lost|found")
            .lit(" ")
            .quality()
            .one_of(
                "",
                "ant|bat|bee|cat|cow|dog|elk|fox|hen|jay|owl|pig|yak|crab|deer|duck|frog|goat|hare|lamb|lion|\
                 mole|moth|newt|seal|swan|toad|wolf|worm|horse|mouse|zebra",
            )
            .lit(". ")
            .lit_by(|r| if is_woman(r.get("who")) { "She ".into() } else { "He ".into() })
            .one_of(
                "",
                "fled|left|smiled|waved|ran home|let it go|named it|hugged it|sat by it|sang to it|gave it tea|\
                 took it home",
            )
            .lit(". ")
            .one_of("", "Alas|Bravo|Encore|Hooray|Hush|Nice|Sorry|Thanks")
            .lit_by(|r| format!(", {}!", r.get("who")))
    }

    fn gift(self) -> Self {
        self.person("giver")
            .lit(" ")
            .one_of("", "gave|lent|sent|sold|made|bought")
            .lit(" ")
            .person("receiver")
            // One of the 31 others, not of all 32.
            .weigh(|r| 32.0 / 31.0 * f64::from(u8::from(r.get("giver") != r.get("receiver"))))
            .lit(" ")
            .quality()
            .one_of(
                "thing",
                "hat|cup|jar|key|map|mug|pen|bell|boat|book|cake|coin|doll|drum|flag|gift|harp|kite|lamp|ring|\
                 rope|vest|quilt|scarf",
            )
            .lit(". ")
            .either([
                (3.0 / 7.0, &|p| {
                    p.lit_by(|r| {
                        let pronoun = if is_woman(r.get("receiver")) { "She" } else { "He" };
                        format!("{pronoun} said: thanks, {}!", r.get("giver"))
                    })
                }),
                (2.0 / 7.0, &|p| {
                    p.lit_by(|r| {
                        let pronoun = if is_woman(r.get("receiver")) { "she" } else { "he" };
                        format!("Now {pronoun} has the {}.", r.get("thing"))
                    })
                }),
                (2.0 / 7.0, &|p| {
                    p.lit_by(|r| {
                        let owner = if is_woman(r.get("receiver")) { "hers" } else { "his" };
                        format!("Now the {} is {owner}.", r.get("thing"))
                    })
                }),
            ])
    }

    fn stock(self) -> Self {
        self.person("who")
            .lit(" has ")
            .number("had")
            .weigh(|r| uniform(r.int("had"), 2, 40))
            .lit(" ")
            .one_of("good", "bead|bean|card|coin|date|leek|lime|pear|plum|ring|seed|tart")
            .lit("s and ")
            .one_of("verb", "buys|finds|gets|wins|eats|gives|loses|sells")
            .lit(" ")
            .number("amount")
            .lit(". Now ")
            .lit_by(|r| if is_woman(r.get("who")) { "she has ".into() } else { "he has ".into() })
            .number("has")
            .weigh(|r| {
                let (had, amount, has) = (r.int("had"), r.int("amount"), r.int("has"));
                if ["buys", "finds", "gets", "wins"].contains(&r.get("verb")) {
                    if had + amount == has { uniform(amount, 2, 40) } else { 0.0 }
                } else if had - amount == has {
                    uniform(amount, 1, had - 1)
                } else {
                    0.0
                }
            })
            .lit_by(|r| format!(" {}{}.", r.get("good"), if r.int("has") == 1 { "" } else { "s" }))
    }

    /// A noun whose ending is named.
    fn noun(self, ending: &'static str, nouns: &'static str) -> Self {
        self.one_of("", nouns).one_of(ending, "s|")
    }

    fn agreement(self) -> Self {
        const ANIMALS: &str = "ant|bat|bee|cat|cow|dog|hen|owl|pig|bird|crab|duck|frog|goat|lamb|mole";
        // A singular noun has a verb in s.
        let ending = |r: &Reading, noun: &str| if r.get(noun).is_empty() { "s" } else { "" };
        self.lit("the ")
            .either([
                (0.5, &|p| p),
                (0.5, &|p| {
                    p.one_of(
                        "",
                        "big|calm|cold|gray|icy|idle|kind|loud|new|odd|old|quick|rare|red|sad|shy|slow|soft|\
                         tiny|ugly|warm|wet|wild|young",
                    )
                    .lit(" ")
                }),
            ])
            .noun("subject", ANIMALS)
            .lit(" ")
            .either([
                (1.0 / 8.0, &|p| p),
                (4.0 / 8.0, &|p| {
                    p.one_of("", "by|near|above|below|behind|beside")
                        .lit(" the ")
                        .noun("", "barn|gate|hill|lake|pond|rock|shed|tree|wall|well|field|house")
                        .lit(" ")
                }),
                (3.0 / 8.0, &|p| {
                    p.lit("that the ")
                        .noun("inner", ANIMALS)
                        .lit(" ")
                        .one_of("", "see|fear|hear|help|know|like|chase|trust")
                        .lit_by(|r| format!("{} ", ending(r, "inner")))
                }),
            ])
            .one_of("", "eat|run|hide|jump|look|play|rest|sing|swim|wait|dance|sleep")
            .lit_by(|r| ending(r, "subject").into())
            .either([
                (2.0 / 8.0, &|p| p),
                (3.0 / 8.0, &|p| p.lit(" ").one_of("", "again|alone|first|here|now|often|there|today")),
                (3.0 / 8.0, &|p| {
                    p.one_of("", ", and|, but")
                        .lit_by(|r| if r.get("subject").is_empty() { " it is ".into() } else { " they are ".into() })
                        .one_of("", "angry|calm|cold|fine|glad|happy|lost|proud|sad|tired|weak|wet")
                }),
            ])
            .lit(".")
    }

    fn equation(self) -> Self {
        let operand = |value: i64| match value {
            1..=9 => 0.25 / 9.0,
            10..=99 => 0.75 / 90.0,
            _ => 0.0,
        };
        self.number("a").run("sign", |c| "+-".contains(c)).number("b").lit("=").number("c").weigh(|r| {
            let (a, b, c) = (r.int("a"), r.int("b"), r.int("c"));
            match r.get("sign") {
                "+" if a + b == c => 2.0 / 3.0 * operand(a) * operand(b),
                "-" if a - b == c => 1.0 / 3.0 * uniform(a, 10, 99) * uniform(b, 1, 9),
                _ => 0.0,
            }
        })
    }

    fn sums(self) -> Self {
        let four = self.equation().lit(", ").equation().lit(", ").equation().lit(", ").equation();
        four.either([(0.5, &|p| p), (0.5, &|p| p.lit(", ").equation())]).lit(".")
    }

    fn numbers(self, name: &'static str) -> Self {
        self.run(name, |c| c == ' ' || c.is_ascii_digit())
    }

    fn count(self) -> Self {
        self.lit("count ")
            .one_of("direction", "up|down")
            .lit(" by ")
            .number("step")
            .weigh(|r| uniform(r.int("step"), 1, 9))
            .lit(": ")
            .numbers("values")
            .weigh(|r| {
                let Some(values) = r.ints("values") else { return 0.0 };
                let step = if r.get("direction") == "up" { r.int("step") } else { -r.int("step") };
                let first = if step > 0 { uniform(values[0], 0, 26) } else { uniform(values[0], 73, 99) };
                let even = values.windows(2).all(|pair| pair[1] - pair[0] == step);
                if even { first * uniform(values.len() as i64, 6, 9) } else { 0.0 }
            })
            .lit(".")
    }

    fn group(self, level: usize) -> Self {
        // Probabilities of a letter, and of one, two and three groups inside.
        let inside = [
            [0.0, 0.0, 1.0, 0.0],
            [1.0 / 8.0, 1.0 / 8.0, 3.0 / 8.0, 3.0 / 8.0],
            [3.0 / 8.0, 1.0 / 8.0, 4.0 / 8.0, 0.0],
            [1.0, 0.0, 0.0, 0.0],
        ][level];
        if self.0.is_empty() {
            return self;
        }
        let groups = |p: Self, n: usize| if inside[n] > 0.0 { (0..n).fold(p, |p, _| p.group(level + 1)) } else { p };
        let content = |p: Self| {
            p.either([
                (inside[0], &|p| p.one_of("", "a|b|c|d|w|x|y|z")),
                (inside[1], &|p| groups(p, 1)),
                (inside[2], &|p| groups(p, 2)),
                (inside[3], &|p| groups(p, 3)),
            ])
        };
        self.either([
            (1.0 / 3.0, &|p| content(p.lit("(")).lit(")")),
            (1.0 / 3.0, &|p| content(p.lit("[")).lit("]")),
            (1.0 / 3.0, &|p| content(p.lit("{")).lit("}")),
        ])
    }

    fn nest(self) -> Self {
        self.lit("nest ").group(0).lit(".")
    }

    fn flip(self) -> Self {
        let letter = |c: char| ('a'..='p').contains(&c);
        self.lit("flip ").run("letters", letter).lit(": ").run("flipped", letter).lit(".").weigh(|r| {
            let (letters, flipped) = (r.get("letters"), r.get("flipped"));
            let n = i32::try_from(letters.len()).expect("documents are short");
            let right = letters.bytes().eq(flipped.bytes().rev());
            if right { uniform(i64::from(n), 8, 16) / 16f64.powi(n) } else { 0.0 }
        })
    }

    fn list(self, prefix: &str) -> Self {
        self.lit(prefix).numbers("list").weigh(|r| {
            let Some(values) = r.ints("list") else { return 0.0 };
            values.iter().map(|&value| uniform(value, 10, 99)).product::<f64>() * uniform(values.len() as i64, 5, 8)
        })
    }

    fn sort(self) -> Self {
        self.list("sort ").lit(": ").numbers("sorted").lit(".").given(|r| {
            let mut values = r.ints("list").expect("checked when it was read");
            values.sort_unstable();
            r.ints("sorted") == Some(values)
        })
    }

    fn extreme(self) -> Self {
        let values = |r: &Reading| r.ints("list").expect("checked when it was read");
        self.either([
            (0.5, &|p| {
                p.list("most ").lit(": ").number("it").given(|r| values(r).into_iter().max() == Some(r.int("it")))
            }),
            (0.5, &|p| {
                p.list("least ").lit(": ").number("it").given(|r| values(r).into_iter().min() == Some(r.int("it")))
            }),
        ])
        .lit(".")
    }
}

fn is_woman(name: &str) -> bool {
    "Alma Anna Beth Edna Elsa Emma Hana Mina Mona Nell Nina Nora Sara Suzy Tess Tina".contains(name)
}

/// Probability of a value that is uniform in `low..=high`.
fn uniform(value: i64, low: i64, high: i64) -> f64 {
    if (low..=high).contains(&value) { 1.0 / (high - low + 1) as f64 } else { 0.0 }
}

/// Names and probabilities, in 32nds, of what a document can be.
const GENRES: [(&str, f64); 10] = [
    ("tale", 4.0),
    ("gift", 4.0),
    ("stock", 4.0),
    ("agreement", 4.0),
    ("sums", 5.0),
    ("count", 2.0),
    ("nest", 3.0),
    ("flip", 2.0),
    ("sort", 2.0),
    ("extreme", 2.0),
];

/// All readings of a document, terminator included: the genre's index and the nats.
fn parse(text: &str) -> Vec<(usize, f64)> {
    let genres = [
        Readings::tale,
        Readings::gift,
        Readings::stock,
        Readings::agreement,
        Readings::sums,
        Readings::count,
        Readings::nest,
        Readings::flip,
        Readings::sort,
        Readings::extreme,
    ];
    let mut found = Vec::new();
    for (index, genre) in genres.into_iter().enumerate() {
        let whole = genre(Readings::of(text)).lit("\n").given(|r| r.rest.is_empty()).times(GENRES[index].1 / 32.0);
        found.extend(whole.0.iter().map(|reading| (index, reading.nll)));
    }
    found
}

// ---------------------------------------------------------------------------------------------------------------------
// Tests.
// ---------------------------------------------------------------------------------------------------------------------

#[test]
fn every_likelihood_is_that_of_the_only_parse() {
    let mut counts = [0u32; GENRES.len()];
    for seed in SEEDS {
        for (text, nll) in Corpus::generate(seed, CHARS).documents() {
            let readings = parse(text);
            let [(genre, expected)] = readings[..] else {
                panic!("seed {seed}: {} parses of {text:?}", readings.len())
            };
            // About 70 logarithms of probabilities, each below 10 nats and rounded once: far below 1e-9.
            assert!((nll - expected).abs() < 1e-9, "seed {seed}: {text:?} has {nll} nats, the parser says {expected}");
            counts[genre] += 1;
        }
    }
    // What is claimed as a probability is also drawn as often.
    let total = counts.iter().sum::<u32>();
    assert!(total >= 20_000, "{total} documents");
    for ((name, weight), count) in GENRES.into_iter().zip(counts) {
        let (n, p) = (f64::from(total), weight / 32.0);
        let sigma = (n * p * (1.0 - p)).sqrt();
        assert!((f64::from(count) - n * p).abs() < 6.0 * sigma, "{name}: {count} of {total}");
    }
}

#[test]
fn parser_rejects_what_the_grammar_does_not_write() {
    // Right, then wrong in one place each.
    let cases: [&[&str]; 14] = [
        &[
            "Nina saw an old fox. She took it home. Bravo, Nina!\n",
            "Nina saw an old fox. He took it home. Bravo, Nina!\n",
        ],
        &["Hugo met a red hen. He fled. Alas, Hugo!\n", "Hugo met an red hen. He fled. Alas, Hugo!\n"],
        &["Hana fed a sad owl. She left. Hush, Hana!\n", "Hana fed a sad owl. She left. Hush, Hans!\n"],
        &[
            "Mark lent Tess a red kite. She said: thanks, Mark!\n",
            "Mark lent Mark a red kite. He said: thanks, Mark!\n",
        ],
        &["Mark lent Tess a red kite. Now she has the kite.\n", "Mark lent Tess a red kite. Now she has the ring.\n"],
        &["Tess sold Mark an odd mug. Now the mug is his.\n", "Tess sold Mark an odd mug. Now the mug is hers.\n"],
        &[
            "Hugo has 12 plums and eats 11. Now he has 1 plum.\n",
            "Hugo has 12 plums and eats 11. Now he has 1 plums.\n",
        ],
        &[
            "Edna has 9 beans and gets 30. Now she has 39 beans.\n",
            "Edna has 9 beans and gets 30. Now she has 38 beans.\n",
        ],
        &["the dog near the barns sleeps.\n", "the dog near the barns sleep.\n", "the dogs near the barn sleeps.\n"],
        &[
            "the pigs that the cat sees run, but they are sad.\n",
            "the pigs that the cat see run, but they are sad.\n",
            "the pigs that the cat sees run, but it is sad.\n",
        ],
        &[
            "17+25=42, 8+4=12, 93-7=86, 40+2=42.\n",
            "17+25=43, 8+4=12, 93-7=86, 40+2=42.\n",
            "17+25=42, 8+4=12, 93-7=86.\n",
        ],
        &[
            "count down by 7: 90 83 76 69 62 55.\n",
            "count down by 7: 90 83 76 69 62 54.\n",
            "count down by 7: 90 83 76 69 62.\n",
        ],
        &["nest {[a]({w})}.\n", "nest {[a]({w}]}.\n", "nest {[a]({w}).\n", "nest {[a]}.\n"],
        &["flip abcdefgh: hgfedcba.\n", "flip abcdefgh: hgfedcbb.\n", "flip abcdefg: gfedcba.\n"],
    ];
    let more: [&[&str]; 2] = [
        &[
            "sort 31 75 52 18 44: 18 31 44 52 75.\n",
            "sort 31 75 52 18 44: 18 44 31 52 75.\n",
            "sort 31 75 52 9 44: 9 31 44 52 75.\n",
        ],
        &["least 31 75 52 18 44: 18.\n", "most 31 75 52 18 44: 18.\n", "least 31  75 52 18 44: 18.\n"],
    ];
    for case in cases.into_iter().chain(more) {
        assert_eq!(parse(case[0]).len(), 1, "{:?}", case[0]);
        for wrong in &case[1..] {
            assert_eq!(parse(wrong), [], "{wrong:?}");
        }
    }
    // Cut, lengthened or with a character that is not in place, no document is one.
    for (text, _) in Corpus::generate(2, 20_000).documents() {
        let body = text.trim_end();
        for wrong in
            [body.to_string(), format!("{text}\n"), format!("{text}{text}"), format!(" {text}"), format!("{body} \n")]
        {
            assert_eq!(parse(&wrong), [], "{wrong:?}");
        }
        for position in 0..text.len() {
            let wrong = format!("{}?{}", &text[..position], &text[position + 1..]);
            assert_eq!(parse(&wrong), [], "{wrong:?}");
        }
    }
}

#[test]
fn documents_are_bounded_ascii_and_terminated_once() {
    let mut characters = BTreeSet::new();
    for seed in SEEDS {
        let corpus = Corpus::generate(seed, CHARS);
        for (text, nll) in corpus.documents() {
            assert!(text.is_ascii() && text.len() <= Corpus::MAX_DOCUMENT, "{text:?}");
            assert_eq!(text.find('\n'), Some(text.len() - 1), "{text:?}");
            assert!(nll.is_finite() && nll > 0.0, "{text:?}: {nll}");
        }
        characters.extend(corpus.text().chars());
    }
    let expected: BTreeSet<char> = "\n !()+,-.0123456789:=ABEHMNST[]abcdefghijklmnopqrstuvwxyz{}".chars().collect();
    assert_eq!(characters, expected);
}

#[test]
fn accessors_agree() {
    let corpus = Corpus::generate(3, 10_000);
    let documents: Vec<_> = corpus.documents().collect();
    assert_eq!(documents.len(), corpus.starts().len());
    assert_eq!(documents.iter().map(|(text, _)| *text).collect::<String>(), corpus.text());
    for (index, (text, nll)) in documents.iter().enumerate() {
        assert!(corpus.text()[corpus.starts()[index]..].starts_with(text));
        assert_eq!(corpus.nll(index), *nll);
    }
    let nats: f64 = documents.iter().map(|(_, nll)| nll).sum();
    assert_eq!(corpus.entropy_floor(), nats / corpus.text().len() as f64);
    // Whole documents, and none more than asked for.
    let last = documents[documents.len() - 1].0.len();
    assert!(corpus.text().len() >= 10_000 && corpus.text().len() - last < 10_000);

    let empty = Corpus::generate(3, 0);
    assert_eq!((empty.text(), empty.starts().len(), empty.documents().count()), ("", 0, 0));
    assert_eq!(empty.entropy_floor(), 0.0);
    assert_eq!(Corpus::generate(3, 1).starts(), [0]);
}

/// 64-bit FNV-1a.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

#[test]
fn a_seed_is_a_text() {
    let text = Corpus::generate(42, 100_000);
    assert_eq!(fnv(b"foobar"), 0x8594_4171_F739_67E8);
    assert_eq!(fnv(&text.text().as_bytes()[..100_000]), 0x5CE6_C79F_B629_64B3, "the text of a seed must never change");
    assert_eq!(text, Corpus::generate(42, 100_000));
    assert!(Corpus::generate(42, 150_000).text().starts_with(text.text()));
    for seed in [41, 43, 42 | 1 << 32] {
        assert_ne!(text.text()[..1000], Corpus::generate(seed, 1000).text()[..1000], "seed {seed}");
    }
}

#[test]
fn a_single_document_has_its_likelihood() {
    let mut random = Philox::new(5, 0);
    for _ in 0..1000 {
        let Document { text, nll } = Document::sample(&mut random);
        let readings = parse(&text);
        assert!(readings.len() == 1 && (readings[0].1 - nll).abs() < 1e-9, "{text:?}: {nll}, {readings:?}");
    }
}

#[test]
fn floor_of_a_sample_tends_to_the_sources() {
    let source = Corpus::source_entropy();
    assert!((source - 0.604_591_912_624_6).abs() < 1e-9, "the scale of reported losses must not move: {source}");
    for seed in SEEDS {
        let corpus = Corpus::generate(seed, CHARS);
        // The floor is a ratio of means; its error is, to first order, the mean of nll - source x length over the
        // mean length.
        let n = corpus.starts().len() as f64;
        let mean_length = corpus.text().len() as f64 / n;
        let variance =
            corpus.documents().map(|(text, nll)| (nll - source * text.len() as f64).powi(2)).sum::<f64>() / n;
        let error = (variance / n).sqrt() / mean_length;
        let floor = corpus.entropy_floor();
        assert!((floor - source).abs() < 6.0 * error, "seed {seed}: {floor}, source {source}, standard error {error}");
        assert!(error < 0.01, "the test must be able to see a difference: {error}");
    }
}

/// Sum of the probabilities of distinct documents, each of which must have one parse.
fn total_probability(documents: impl Iterator<Item = String>) -> f64 {
    let documents: BTreeSet<String> = documents.collect();
    documents
        .iter()
        .map(|text| match parse(text)[..] {
            [(_, nll)] => (-nll).exp(),
            ref readings => panic!("{} parses of {text:?}", readings.len()),
        })
        .sum()
}

#[test]
fn probabilities_of_enumerable_parts_sum_to_one() {
    // All count documents: their genre's probability.
    let counts = (0..2 * 9 * 27 * 4).map(|index| {
        let (down, step, start, more) = (index % 2 == 1, index / 2 % 9 + 1, index / 18 % 27, index / 486);
        let direction = if down { "down" } else { "up" };
        let value = |term: i32| if down { 73 + start - term * step } else { start + term * step };
        let values: Vec<String> = (0..6 + more).map(|term| value(term).to_string()).collect();
        format!("count {direction} by {step}: {}.\n", values.join(" "))
    });
    assert!((total_probability(counts) - 2.0 / 32.0).abs() < 1e-12);

    // All equations in the first place of sums whose other three are fixed.
    let tail = ", 1+1=2, 1+1=2, 1+1=2.\n";
    let mut equations = Vec::new();
    for a in 1..=99 {
        equations.extend((1..=99).map(|b| format!("{a}+{b}={}{tail}", a + b)));
        if a >= 10 {
            equations.extend((1..=9).map(|b| format!("{a}-{b}={}{tail}", a - b)));
        }
    }
    let one_and_one: f64 = 2.0 / 3.0 / 36.0 / 36.0;
    let expected = 5.0 / 32.0 / 2.0 * one_and_one.powi(3);
    assert!((total_probability(equations.into_iter()) / expected - 1.0).abs() < 1e-10);

    // All endings of a stock whose beginning is fixed.
    let mut stocks = Vec::new();
    for amount in 1..=40 {
        for verb in ["buys", "finds", "gets", "wins", "eats", "gives", "loses", "sells"] {
            let gain = ["buys", "finds", "gets", "wins"].contains(&verb);
            if (gain && amount >= 2) || (!gain && amount < 12) {
                let has = if gain { 12 + amount } else { 12 - amount };
                let s = if has == 1 { "" } else { "s" };
                stocks.push(format!("Nora has 12 seeds and {verb} {amount}. Now she has {has} seed{s}.\n"));
            }
        }
    }
    let expected = 4.0 / 32.0 / 32.0 / 39.0 / 12.0;
    assert!((total_probability(stocks.into_iter()) / expected - 1.0).abs() < 1e-10);
}
