//! Sampling: from logits to tokens, from a prompt to text.

use crate::random::Philox;
use crate::{Error, Result};

/// Philox stream of the draws.
const STREAM: u32 = 0x7361_6D70;

/// What a model must do so that it can be sampled from: run on, token by token, with what it remembers of those before (the KV cache).
pub trait Decoder {
    /// The most tokens that it can remember.
    fn capacity(&self) -> usize;

    /// Forgets everything, runs through `tokens` (at least one, at most [`Decoder::capacity`]) and returns the logits of the next one.
    ///
    /// # Errors
    /// Of the device.
    fn start(&mut self, tokens: &[u32]) -> Result<Vec<f32>>;

    /// Adds one token to what it remembers (less than its capacity) and returns the logits of the next one.
    ///
    /// # Errors
    /// Of the device.
    fn push(&mut self, token: u32) -> Result<Vec<f32>>;
}

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the likeliest token.
    pub temperature: f64,
    /// Draws from that many of the likeliest tokens only.
    pub top_k: Option<usize>,
    /// Seed of the draws.
    pub seed: u64,
}

impl Sampling {
    /// Checks the fields.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the flag.
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::invalid("--temperature", "a number of at least 0", self.temperature.to_string()));
        }
        if self.top_k == Some(0) {
            return Err(Error::invalid("--top-k", "at least 1", "0"));
        }
        Ok(())
    }

    /// Draws a token: softmax over the `top_k` highest logits (of equal ones the first count), in f64.
    fn pick(&self, logits: &[f32], random: &mut Philox) -> Result<u32> {
        if logits.is_empty() || logits.iter().any(|l| !l.is_finite()) {
            return Err(Error::Device("the model's output is not finite".to_owned()));
        }
        let mut order: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&l| f64::from(l))).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.temperature == 0.0 {
            return Ok(order[0].0);
        }
        order.truncate(self.top_k.unwrap_or(order.len()));
        let top = order[0].1;
        let mut sum = 0.0;
        for (_, value) in &mut order {
            sum += ((*value - top) / self.temperature).exp();
            *value = sum;
        }
        let drawn = random.next_f64() * sum;
        Ok(order.iter().find(|(_, cumulative)| drawn < *cumulative).unwrap_or(&order[0]).0)
    }
}

/// Goes on from `prompt` for `count` tokens, each handed to `emit`, which returns false to stop.
///
/// Where the decoder's memory is full the window slides: it starts again from the newer half, so that a token costs two on average and
/// always has at least half of the context.
///
/// # Errors
/// [`Error::Invalid`] for an empty prompt or bad settings; what the decoder returns.
pub fn generate(
    decoder: &mut impl Decoder,
    prompt: &[u32],
    count: usize,
    sampling: &Sampling,
    emit: &mut dyn FnMut(u32) -> bool,
) -> Result<()> {
    sampling.validate()?;
    if prompt.is_empty() {
        return Err(Error::invalid("--prompt", "at least one character", "none"));
    }
    let capacity = decoder.capacity().max(1);
    let mut random = Philox::new(sampling.seed, STREAM);
    let mut window = prompt[prompt.len().saturating_sub(capacity)..].to_vec();
    let mut logits = Vec::new();
    for done in 0..count {
        logits = match window.last() {
            Some(&last) if done > 0 && window.len() <= capacity => {
                debug_assert!(!logits.is_empty());
                decoder.push(last)?
            }
            _ => {
                if window.len() > capacity {
                    window.drain(..window.len() - capacity.div_ceil(2));
                }
                decoder.start(&window)?
            }
        };
        let token = sampling.pick(&logits, &mut random)?;
        if !emit(token) {
            break;
        }
        window.push(token);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts up modulo 10; remembers what it saw.
    struct Counter {
        seen: Vec<u32>,
        starts: Vec<usize>,
    }

    impl Counter {
        fn new() -> Self {
            Self { seen: Vec::new(), starts: Vec::new() }
        }

        fn logits(&self) -> Vec<f32> {
            assert!(self.seen.len() <= self.capacity());
            let next = (self.seen.last().unwrap() + 1) % 10;
            (0..10).map(|t| if t == next { 5.0 } else { 0.0 }).collect()
        }
    }

    impl Decoder for Counter {
        fn capacity(&self) -> usize {
            8
        }

        fn start(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
            self.starts.push(tokens.len());
            self.seen = tokens.to_vec();
            Ok(self.logits())
        }

        fn push(&mut self, token: u32) -> Result<Vec<f32>> {
            self.seen.push(token);
            Ok(self.logits())
        }
    }

    fn run(prompt: &[u32], count: usize, sampling: &Sampling) -> (Vec<u32>, Vec<usize>) {
        let (mut decoder, mut tokens) = (Counter::new(), Vec::new());
        generate(&mut decoder, prompt, count, sampling, &mut |t| {
            tokens.push(t);
            true
        })
        .unwrap();
        (tokens, decoder.starts)
    }

    #[test]
    fn goes_on_past_the_context() {
        let greedy = Sampling { temperature: 0.0, top_k: None, seed: 1 };
        let (tokens, starts) = run(&[3], 40, &greedy);
        assert_eq!(tokens, (0..40).map(|i| (i + 4) % 10).collect::<Vec<u32>>());
        assert_eq!(starts[..3], [1, 4, 4]);
        // A prompt longer than the context counts by its end.
        assert_eq!(run(&(0..25).map(|i| i % 10).collect::<Vec<_>>(), 3, &greedy), (vec![5, 6, 7], vec![8, 4]));
        assert!(generate(&mut Counter::new(), &[], 1, &greedy, &mut |_| true).is_err());
    }

    #[test]
    fn draws_follow_the_distribution_and_the_seed() {
        let sampling = Sampling { temperature: 2.0, top_k: Some(3), seed: 9 };
        assert_eq!(run(&[3], 50, &sampling), run(&[3], 50, &sampling));
        let mut random = Philox::new(1, 0);
        let logits = [1.0, 3.0, 2.0, 2.0, -1.0];
        let mut counts = [0u32; 5];
        for _ in 0..10_000 {
            counts[sampling.pick(&logits, &mut random).unwrap() as usize] += 1;
        }
        let half = (-0.5f64).exp();
        let expected = [0.0, 1.0, half, half, 0.0].map(|w| 10_000.0 * w / (1.0 + 2.0 * half));
        for (count, expected) in counts.iter().zip(expected) {
            assert!((f64::from(*count) - expected).abs() <= 6.0 * f64::sqrt(expected), "{counts:?}");
        }
        assert!(sampling.pick(&[0.0, f32::NAN], &mut random).is_err());
        for bad in [Sampling { temperature: -1.0, ..sampling }, Sampling { top_k: Some(0), ..sampling }] {
            assert!(bad.validate().unwrap_err().to_string().starts_with("--t"));
        }
    }
}
