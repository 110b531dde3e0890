//! What is learned from: text as tokens, the vocabulary, training batches and validation windows.

use super::corpus::Corpus;
use crate::random::philox4x32_10;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The target of a position whose prediction does not count.
pub const IGNORE: u32 = u32::MAX;

/// Characters of the built-in training split.
const BUILT_IN_TRAIN: usize = 1 << 20;
/// Characters of the built-in validation split.
const BUILT_IN_VALIDATION: usize = 100_000;
/// Seeds of the two. They do not follow the run's seed, so that losses and floors of all runs compare.
const BUILT_IN_SEEDS: [u64; 2] = [1, 2];

/// Tells the draws of batches from all others under the same seed.
const STREAM: u32 = 0x6461_7461;

/// The set of characters of a text, in ascending order; a character's token is its position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CharVocab(Vec<char>);

impl CharVocab {
    /// The characters that `text` has.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self(text.chars().collect::<std::collections::BTreeSet<_>>().into_iter().collect())
    }

    /// Number of characters.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The token of a character, if it has one.
    #[must_use]
    pub fn token(&self, character: char) -> Option<u32> {
        self.0.binary_search(&character).ok().and_then(|at| u32::try_from(at).ok())
    }

    /// The character of a token, if there is one.
    #[must_use]
    pub fn character(&self, token: u32) -> Option<char> {
        self.0.get(usize::try_from(token).ok()?).copied()
    }

    /// The tokens of a text.
    ///
    /// # Errors
    /// [`Error::Invalid`] for `what`, naming the first unknown character and those there are.
    pub fn encode(&self, what: &str, text: &str) -> Result<Vec<u32>> {
        text.chars()
            .map(|character| {
                self.token(character).ok_or_else(|| {
                    let known: String = self.0.iter().flat_map(|c| c.escape_debug()).collect();
                    Error::invalid(what, format!("characters that the model knows: {known}"), format!("{character:?}"))
                })
            })
            .collect()
    }

    /// The text of tokens; what is no token becomes U+FFFD.
    #[must_use]
    pub fn decode(&self, tokens: &[u32]) -> String {
        tokens.iter().map(|&token| self.character(token).unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
    }
}

impl From<CharVocab> for String {
    fn from(vocab: CharVocab) -> Self {
        vocab.0.into_iter().collect()
    }
}

impl TryFrom<String> for CharVocab {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // Before they take memory: a text that is no vocabulary may be long.
        if text.chars().is_sorted_by(|a, b| a < b) {
            Ok(Self(text.chars().collect()))
        } else {
            Err("the vocabulary's characters are not in ascending order".to_owned())
        }
    }
}

/// Windows over the validation split, of one length each.
#[derive(Clone, Debug, PartialEq)]
pub struct Windows {
    /// Tokens, `[rows, block]`.
    pub inputs: Vec<u32>,
    /// The token that follows each, or [`IGNORE`]; `[rows, block]`.
    pub targets: Vec<u32>,
    /// Number of windows.
    pub rows: usize,
    /// Nats per counted target that no model can beat on average, where that is known.
    pub entropy_floor: Option<f64>,
}

/// Documents of a known likelihood, one after another.
#[derive(Clone, Debug)]
struct Documents {
    /// Positions in the split's tokens at which documents start.
    starts: Vec<usize>,
    /// Nats of each.
    nll: Vec<f64>,
}

/// A training and a validation split with their vocabulary.
///
/// A text is cut: nine tenths of its characters train. Of the built-in corpus each split is a text of its own, whose windows start where
/// a document starts, both in training and in validation; every token list then begins with a terminator, so that the first
/// character of each document is predicted from the end of another.
#[derive(Clone, Debug)]
pub struct Dataset {
    vocab: CharVocab,
    train: Vec<u32>,
    validation: Vec<u32>,
    /// Training and validation documents of the built-in corpus.
    documents: Option<[Documents; 2]>,
    digest: String,
    key: [u32; 2],
}

impl Dataset {
    /// The text of a file, for windows of `block` tokens drawn by `seed`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::File`] if it is not UTF-8, empty or too short.
    pub fn from_file(path: &Path, block: usize, seed: u64) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            let byte = e.as_bytes().get(at).copied().unwrap_or_default();
            Error::file(path, "UTF-8 text", format!("the byte 0x{byte:02x} at offset {at}, which is not"))
        })?;
        Self::from_text(&text, block, seed).map_err(|(needed, found)| {
            let expected = format!("at least {needed} characters for windows of {block} tokens (--block)");
            Error::file(path, expected, if found == 0 { "an empty file".to_owned() } else { found.to_string() })
        })
    }

    /// A text; the error holds the number of characters that are needed and found.
    fn from_text(text: &str, block: usize, seed: u64) -> Result<Self, (usize, usize)> {
        let vocab = CharVocab::of(text);
        let tokens: Vec<u32> = text.chars().filter_map(|c| vocab.token(c)).collect();
        let cut = |n: usize| n / 10 * 9 + n % 10 * 9 / 10;
        let enough = |n: usize| cut(n) > block && n - cut(n) >= 2;
        if !enough(tokens.len()) {
            let mut needed = block;
            while !enough(needed) {
                needed += 1;
            }
            return Err((needed, tokens.len()));
        }
        let mut train = tokens;
        let validation = train.split_off(cut(train.len()));
        Ok(Self { vocab, train, validation, documents: None, digest: digest(text.as_bytes()), key: key(seed) })
    }

    /// The built-in corpus, for windows of `block` tokens drawn by `seed`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `block` is shorter than its documents can be.
    pub fn built_in(block: usize, seed: u64) -> Result<Self> {
        if block < Corpus::MAX_DOCUMENT {
            return Err(Error::invalid(
                "--block",
                format!(
                    "at least {} with the built-in corpus, whose documents are evaluated whole",
                    Corpus::MAX_DOCUMENT
                ),
                block.to_string(),
            ));
        }
        if block > BUILT_IN_VALIDATION / 2 {
            return Err(Error::invalid(
                "--block",
                format!("at most {} with the built-in corpus", BUILT_IN_VALIDATION / 2),
                block.to_string(),
            ));
        }
        let [train, validation] = [BUILT_IN_TRAIN, BUILT_IN_VALIDATION];
        let corpora = [Corpus::generate(BUILT_IN_SEEDS[0], train), Corpus::generate(BUILT_IN_SEEDS[1], validation)];
        let all = format!("\n{}\n{}", corpora[0].text(), corpora[1].text());
        let vocab = CharVocab::of(&all);
        let tokens = |corpus: &Corpus| -> Vec<u32> {
            std::iter::once('\n').chain(corpus.text().chars()).filter_map(|c| vocab.token(c)).collect()
        };
        // With the terminator in front, a document's offset in the text is the position of the terminator before it.
        let documents = corpora.each_ref().map(|corpus| Documents {
            starts: corpus.starts().to_vec(),
            nll: corpus.documents().map(|(_, nll)| nll).collect(),
        });
        Ok(Self {
            train: tokens(&corpora[0]),
            validation: tokens(&corpora[1]),
            documents: Some(documents),
            digest: digest(all.as_bytes()),
            key: key(seed),
            vocab,
        })
    }

    /// The characters of both splits.
    #[must_use]
    pub fn vocab(&self) -> &CharVocab {
        &self.vocab
    }

    /// Tokens of the training split.
    #[must_use]
    pub fn train_len(&self) -> usize {
        self.train.len()
    }

    /// Tokens of the validation split.
    #[must_use]
    pub fn validation_len(&self) -> usize {
        self.validation.len()
    }

    /// Identifies the text.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Random windows of the training split and the tokens that follow: inputs and targets, `[batch, block]` each.
    ///
    /// They are a function of the seed, the step, the micro-batch and the row alone, so that a resumed run goes on with the batches that
    /// it would have seen.
    #[must_use]
    pub fn train_batch(&self, step: u64, micro: u32, batch: usize, block: usize) -> (Vec<u32>, Vec<u32>) {
        let mut inputs = Vec::with_capacity(batch * block);
        let mut targets = Vec::with_capacity(batch * block);
        // Windows may start anywhere, or at documents that leave room for one.
        let last = self.train.len().saturating_sub(block + 1);
        let choices = match &self.documents {
            None => last + 1,
            Some([train, _]) => train.starts.partition_point(|&start| start <= last),
        };
        for row in 0..batch {
            let draw = self.draw(step, micro, row, choices);
            let start = match &self.documents {
                None => draw,
                Some([train, _]) => train.starts.get(draw).copied().unwrap_or(0),
            };
            inputs.extend_from_slice(&self.train[start..start + block]);
            targets.extend_from_slice(&self.train[start + 1..start + block + 1]);
        }
        (inputs, targets)
    }

    /// A number below `n`, evenly but for n / 2^64.
    #[expect(clippy::cast_possible_truncation, reason = "words of a counter; the product's high half is below n")]
    fn draw(&self, step: u64, micro: u32, row: usize, n: usize) -> usize {
        let words = philox4x32_10(self.key, [row as u32, micro, step as u32, (step >> 32) as u32]);
        let bits = u64::from(words[0]) << 32 | u64::from(words[1]);
        ((u128::from(bits) * n as u128) >> 64) as usize
    }

    /// The validation split in windows of `block` tokens that do not overlap; all of them, or at most `limit`, spread evenly.
    ///
    /// Of a text every token but the first is a target once. Of the built-in corpus a window holds as many whole documents as fit, and
    /// their characters, terminators included, are the targets; the entropy floor is that of the documents in the windows returned.
    #[must_use]
    pub fn eval_windows(&self, block: usize, limit: Option<usize>) -> Windows {
        // (first input, number of targets, nats) of each window
        let mut all: Vec<(usize, usize, f64)> = Vec::new();
        match &self.documents {
            None => {
                let targets = self.validation.len().saturating_sub(1);
                all.extend((0..targets).step_by(block.max(1)).map(|start| (start, block.min(targets - start), 0.0)));
            }
            Some([_, documents]) => {
                let ends = documents.starts.iter().skip(1).copied().chain([self.validation.len() - 1]);
                for ((&start, end), &nll) in documents.starts.iter().zip(ends).zip(&documents.nll) {
                    match all.last_mut() {
                        Some((first, count, nats)) if end - *first <= block => {
                            *count = end - *first;
                            *nats += nll;
                        }
                        _ => all.push((start, end - start, nll)),
                    }
                }
            }
        }
        let rows = limit.map_or(all.len(), |limit| limit.min(all.len()));
        let mut windows = Windows { inputs: Vec::new(), targets: Vec::new(), rows, entropy_floor: None };
        let (mut counted, mut nats) = (0usize, 0.0);
        for row in 0..rows {
            let (start, count, nll) = all[row * all.len() / rows];
            let filled = (row + 1) * block;
            windows.inputs.extend_from_slice(&self.validation[start..start + count]);
            windows.inputs.resize(filled, 0);
            windows.targets.extend_from_slice(&self.validation[start + 1..start + count + 1]);
            windows.targets.resize(filled, IGNORE);
            counted += count;
            nats += nll;
        }
        #[expect(clippy::cast_precision_loss, reason = "a count of characters")]
        if self.documents.is_some() && counted > 0 {
            windows.entropy_floor = Some(nats / counted as f64);
        }
        windows
    }
}

/// The Philox key of a seed's batches, apart from the seed itself, which is the key of dropout and initial weights.
#[expect(clippy::cast_possible_truncation, reason = "the two halves of the seed")]
fn key(seed: u64) -> [u32; 2] {
    let words = philox4x32_10([seed as u32, (seed >> 32) as u32], [STREAM, 0, 0, u32::MAX]);
    [words[0], words[1]]
}

/// 64 bits that tell contents apart, in hexadecimal: FNV-1a over little-endian words of eight bytes, the last padded with zeros, then the
/// length. A change within a single word never goes unnoticed, since each round is a bijection.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let mut digest = Digest::default();
    digest.add(bytes);
    digest.finish()
}

/// [`digest`] of several pieces, each with its length.
pub(crate) struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }
}

impl Digest {
    pub fn add(&mut self, bytes: &[u8]) {
        let mut round = |word: u64| self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(29);
        let (words, tail) = bytes.as_chunks::<8>();
        for word in words {
            round(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..tail.len()].copy_from_slice(tail);
        round(u64::from_le_bytes(last));
        round(bytes.len() as u64);
    }

    pub fn finish(&self) -> String {
        format!("{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(chars: usize) -> String {
        (0..chars).map(|i| char::from(b'a' + u8::try_from((i * i + i / 7) % 23).unwrap())).collect()
    }

    #[test]
    fn vocabulary_is_sorted_and_reversible() {
        let vocab = CharVocab::of("héllo\nwörld");
        assert_eq!(String::from(vocab.clone()), "\ndhlorwéö");
        let tokens = vocab.encode("--prompt", "höllow").unwrap();
        assert_eq!(vocab.decode(&tokens), "höllow");
        let error = vocab.encode("--prompt", "hdx").unwrap_err().to_string();
        assert!(error.contains("--prompt") && error.contains("'x'") && error.contains("\\ndhlorw"), "{error}");
        assert_eq!(vocab.decode(&[99]), "\u{FFFD}");
        let json = serde_json::to_string(&vocab).unwrap();
        assert_eq!(serde_json::from_str::<CharVocab>(&json).unwrap(), vocab);
        assert!(serde_json::from_str::<CharVocab>("\"ba\"").is_err());
    }

    #[test]
    fn text_is_split_as_nanogpt_splits_it() {
        let data = Dataset::from_text(&sample(1_115_394), 64, 1).unwrap();
        assert_eq!((data.train_len(), data.validation_len()), (1_003_854, 111_540));
    }

    #[test]
    fn short_text_is_refused_with_what_it_takes() {
        for block in [1, 8, 64, 256] {
            let (needed, found) = Dataset::from_text("", block, 1).unwrap_err();
            assert_eq!(found, 0);
            assert!(Dataset::from_text(&sample(needed - 1), block, 1).is_err(), "{block}");
            let data = Dataset::from_text(&sample(needed), block, 1).unwrap();
            assert_eq!(data.train_batch(1, 0, 3, block).0.len(), 3 * block);
            assert!(data.eval_windows(block, None).rows >= 1);
        }
    }

    #[test]
    fn files_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text.txt");
        let error = |content: Option<&[u8]>| {
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let error = Dataset::from_file(&path, 64, 1).unwrap_err();
            assert!(!error.is_failure());
            error.to_string()
        };
        assert!(error(None).contains("text.txt: cannot read"));
        assert!(error(Some(b"")).contains("an empty file"));
        assert!(error(Some(b"short")).contains("at least 73 characters"));
        assert!(error(Some(b"abc\xFFdef")).contains("0xff at offset 3"));
    }

    #[test]
    fn batches_depend_on_seed_step_micro_batch_and_row_only() {
        let data = Dataset::from_text(&sample(5000), 16, 7).unwrap();
        let (inputs, targets) = data.train_batch(3, 1, 4, 16);
        assert_eq!(data.train_batch(3, 1, 4, 16).0, inputs);
        assert_eq!(data.train_batch(3, 1, 6, 16).0[..64], inputs[..]);
        for row in 0..4 {
            assert_eq!(inputs[row * 16 + 1..row * 16 + 16], targets[row * 16..row * 16 + 15]);
        }
        assert_ne!(data.train_batch(4, 1, 4, 16).0, inputs);
        assert_ne!(data.train_batch(3, 0, 4, 16).0, inputs);
        assert_ne!(Dataset::from_text(&sample(5000), 16, 8).unwrap().train_batch(3, 1, 4, 16).0, inputs);
    }

    #[test]
    fn batches_reach_all_of_the_split_evenly() {
        let data = Dataset::from_text(&sample(100), 8, 7).unwrap();
        let mut counts = vec![0u32; data.train_len() - 8];
        for step in 0..10_000 {
            counts[data.draw(step, 0, 3, data.train_len() - 8)] += 1;
        }
        let mean = 10_000.0 / counts.len() as f64;
        assert!(counts.iter().all(|&n| (f64::from(n) - mean).abs() < 6.0 * mean.sqrt()), "{counts:?}");
    }

    #[test]
    fn every_validation_token_but_the_first_is_a_target_once() {
        for block in [1, 7, 64, 499, 500] {
            let data = Dataset::from_text(&sample(5000), block, 7).unwrap();
            let windows = data.eval_windows(block, None);
            let targets: Vec<u32> = windows.targets.iter().copied().filter(|&t| t != IGNORE).collect();
            assert_eq!(targets, data.validation[1..]);
            assert_eq!(windows.inputs.len(), windows.rows * block);
            assert_eq!(windows.targets.len(), windows.rows * block);
            assert_eq!(windows.entropy_floor, None);
            let few = data.eval_windows(block, Some(3));
            assert_eq!(few.rows, windows.rows.min(3));
            assert_eq!(few.inputs[..block], windows.inputs[..block]);
        }
    }

    #[test]
    fn built_in_windows_hold_whole_documents_and_their_floor() {
        let corpus = Corpus::generate(BUILT_IN_SEEDS[1], BUILT_IN_VALIDATION);
        for block in [64, 100, 256] {
            let data = Dataset::built_in(block, 3).unwrap();
            let windows = data.eval_windows(block, None);
            let terminator = data.vocab().token('\n').unwrap();
            let mut text = String::new();
            for (inputs, targets) in windows.inputs.chunks(block).zip(windows.targets.chunks(block)) {
                let count = targets.iter().position(|&t| t == IGNORE).unwrap_or(block);
                assert!(targets[count..].iter().all(|&t| t == IGNORE));
                assert_eq!((inputs[0], targets[count - 1]), (terminator, terminator));
                assert_eq!(inputs[1..count], targets[..count - 1]);
                text.push_str(&data.vocab().decode(&targets[..count]));
            }
            assert_eq!(text, corpus.text());
            let floor = windows.entropy_floor.unwrap();
            assert!((floor - corpus.entropy_floor()).abs() < 1e-12, "{floor} is not {}", corpus.entropy_floor());
            // Fewer windows have the floor of their own documents.
            let few = data.eval_windows(block, Some(16));
            assert_eq!(few.rows, 16);
            assert!((few.entropy_floor.unwrap() - floor).abs() < 0.3);
            let (inputs, targets) = data.train_batch(1, 0, 8, block);
            for (inputs, targets) in inputs.chunks(block).zip(targets.chunks(block)) {
                assert_eq!(inputs[0], terminator);
                assert_eq!(inputs[1..], targets[..block - 1]);
            }
        }
        assert!(Dataset::built_in(63, 3).unwrap_err().to_string().starts_with("--block: expected at least 64"));
    }

    #[test]
    fn digests_notice_bits_and_lengths() {
        let bytes = [7u8; 40];
        let whole = digest(&bytes);
        for at in 0..40 {
            for bit in 0..8 {
                let mut changed = bytes;
                changed[at] ^= 1 << bit;
                assert_ne!(digest(&changed), whole);
            }
        }
        assert_ne!(digest(&[0; 8]), digest(&[0; 9]));
        assert_ne!(digest(&[]), digest(&[0]));
    }
}
