//! OneBit distilled from a model in full precision: the loss falls, steps are the same to the bit after a resumption, nothing is made in
//! the steady state, and what is wrong is refused.

mod common;

use common::{assert_steady, best_tiers, dtypes, every_tier, mean};
use walsh::nn::{GptConfig, KvCache};
use walsh::op::LossOptions;
use walsh::optim::{AdamWOptions, Schedule};
use walsh::qat::{Method, Settings, svid};
use walsh::train::{BatchShape, GptRun, Model, PendingStats, TensorData};
use walsh::{Context, DType, Tensor};

const SHAPE: BatchShape = BatchShape { batch: 4, block: 16, accumulate: 1 };
const VOCAB: usize = 11;

fn config(method: &str) -> GptConfig {
    let quantizer = method.parse::<Method>().unwrap().quantizer(&Settings::default()).unwrap();
    GptConfig { layers: 2, heads: 2, embd: 32, block: 16, vocab: VOCAB, dropout: 0.1, bias: true, quantizer }
}

fn run(context: &Context, method: &str, shape: BatchShape, dtype: DType) -> GptRun {
    let options = AdamWOptions { schedule: Schedule::constant(3e-3), ..AdamWOptions::default() };
    GptRun::new(context, config(method), shape, options, 5, dtype).unwrap()
}

/// Sequences in which a token says what the next one is.
fn batch(step: u32, len: usize) -> (Vec<u32>, Vec<u32>) {
    let inputs: Vec<u32> = (0..len as u32).map(|i| (i / 16 * 3 + step + 4 * (i % 16)) % VOCAB as u32).collect();
    let targets = inputs.iter().map(|token| (token + 4) % VOCAB as u32).collect();
    (inputs, targets)
}

fn train(run: &mut GptRun, steps: std::ops::Range<u32>, len: usize) -> Vec<f64> {
    let one = |step| {
        let (inputs, targets) = batch(step, len);
        run.train_step(&inputs, &targets).unwrap();
        run.stats().unwrap().wait().unwrap().loss
    };
    steps.map(one).collect()
}

fn parameters(run: &mut GptRun) -> Vec<(String, TensorData)> {
    run.export().unwrap().into_iter().filter(|(name, _)| name.starts_with("model.")).collect()
}

fn values(run: &mut GptRun, name: &str) -> Vec<f32> {
    let all = run.export().unwrap();
    all.iter().find(|(own, _)| own == name).unwrap_or_else(|| panic!("no {name}")).1.to_f32().unwrap()
}

fn nats(run: &mut GptRun) -> f64 {
    let (inputs, targets) = batch(90, 64);
    let (sum, count) = run.eval(&inputs, &targets).unwrap();
    sum / count as f64
}

/// A teacher that has learned a little.
fn teacher(context: &Context, dtype: DType) -> (Vec<(String, TensorData)>, f64) {
    let mut run = run(context, "none", SHAPE, dtype);
    train(&mut run, 0..80, 64);
    let loss = nats(&mut run);
    (parameters(&mut run), loss)
}

#[test]
fn a_student_starts_from_its_teacher_and_learns_from_it() {
    for context in best_tiers() {
        for dtype in dtypes(&context) {
            let (tensors, taught) = teacher(&context, dtype);
            let mut student = run(&context, "onebit", SHAPE, dtype);
            student.learn_from(&tensors).unwrap();
            let find = |name: &str| &tensors.iter().find(|(own, _)| own == name).unwrap().1;
            assert_eq!(
                values(&mut student, "model.transformer.wte.weight"),
                find("model.transformer.wte.weight").to_f32().unwrap()
            );
            let name = "model.transformer.h.1.mlp.c_fc";
            let start = svid(&find(&format!("{name}.weight")).to_f32().unwrap(), 32).unwrap();
            assert_eq!(values(&mut student, &format!("{name}.weight")), start.weight);
            assert_eq!(values(&mut student, &format!("{name}.input_values")), start.input_values);
            assert_eq!(values(&mut student, &format!("{name}.output_values")), start.output_values);

            let before = nats(&mut student);
            let losses = train(&mut student, 100..160, 64);
            let after = nats(&mut student);
            let (first, last) = (mean(&losses[..5]), mean(&losses[55..]));
            eprintln!("{dtype}: loss {first} to {last}; nats {before} to {after}, the teacher's {taught}");
            assert!(last < 0.7 * first, "{dtype}: from {first} to {last}");
            // It never saw the targets: what it knows of them is the teacher's.
            assert!(
                after < 0.6 * before && taught < 0.6 * before,
                "{dtype}: nats from {before} to {after}, the teacher's {taught}"
            );
        }
    }
}

#[test]
fn the_loss_is_that_of_both_parts() {
    for context in best_tiers() {
        let (tensors, _) = teacher(&context, DType::F32);
        let config = GptConfig { dropout: 0.0, ..config("onebit:hidden=0.5") };
        let options = AdamWOptions::default();
        let mut student = GptRun::new(&context, config.clone(), SHAPE, options, 5, DType::F32).unwrap();
        student.learn_from(&tensors).unwrap();
        let full = GptConfig { quantizer: None, ..config };
        let mut full = GptRun::new(&context, full, SHAPE, options, 5, DType::F32).unwrap();
        let mut all = full.export().unwrap();
        for (name, data) in &mut all {
            if let Some((_, own)) = tensors.iter().find(|(own, _)| own == name) {
                data.bytes.clone_from(&own.bytes);
            }
        }
        full.import(&all).unwrap();
        let (inputs, targets) = batch(7, 64);
        let tokens = Tensor::from_u32(&context, &inputs, &[4, 16]).unwrap();
        let want = context.no_grad(|| {
            let (y, theirs) = full.gpt().logits_and_hidden(&tokens, None).unwrap();
            let (z, own) = student.gpt().logits_and_hidden(&tokens, None).unwrap();
            // The embedding's output and that of the first of two blocks.
            assert_eq!((own.len(), theirs.len()), (2, 2));
            let options = LossOptions { classes: Some(VOCAB), ..LossOptions::default() };
            let soft = z.soft_cross_entropy(&y, options).unwrap().item().unwrap();
            let parts = own.iter().zip(&theirs).map(|(a, b)| a.hidden_distance(b, options).unwrap().item().unwrap());
            soft + 0.5 * parts.sum::<f32>()
        });
        student.train_step(&inputs, &targets).unwrap();
        let got = student.stats().unwrap().wait().unwrap().loss;
        assert!((got - f64::from(want)).abs() < 1e-5, "{got}, want {want}");
    }
}

#[test]
fn a_resumed_student_gives_the_same_bits() {
    for context in every_tier() {
        for dtype in dtypes(&context) {
            let (tensors, _) = teacher(&context, dtype);
            let student = || {
                let mut student = run(&context, "onebit", SHAPE, dtype);
                student.learn_from(&tensors).unwrap();
                student
            };
            let mut whole = student();
            train(&mut whole, 0..4, 64);
            let middle = whole.export().unwrap();
            let losses = train(&mut whole, 4..8, 64);
            let mut again = student();
            again.import(&middle).unwrap();
            assert_eq!(train(&mut again, 4..8, 64), losses);
            assert_eq!(again.export().unwrap(), whole.export().unwrap());
        }
    }
}

#[test]
fn the_steady_state_creates_nothing_and_submits_once() {
    for context in every_tier() {
        for dtype in dtypes(&context) {
            let (tensors, _) = teacher(&context, dtype);
            let mut student = run(&context, "onebit", BatchShape { accumulate: 2, ..SHAPE }, dtype);
            student.learn_from(&tensors).unwrap();
            let (inputs, targets) = batch(1, 128);
            for _ in 0..2 {
                student.train_step(&inputs, &targets).unwrap();
            }
            context.synchronize().unwrap();
            assert_steady("onebit", &context, 4, |_| student.train_step(&inputs, &targets).unwrap());
        }
    }
}

#[test]
fn a_cache_gives_the_logits_of_whole_sequences() {
    for context in every_tier() {
        // Not bitnet: a code of its inputs may fall to either side where sums come in another order.
        for method in ["onebit", "bwn", "binaryconnect"] {
            let run = run(&context, method, SHAPE, DType::F32);
            let (tokens, _) = batch(3, 16);
            let all = Tensor::from_u32(&context, &tokens, &[1, 16]).unwrap();
            let want = context.no_grad(|| run.gpt().logits(&all, None)).unwrap().to_vec().unwrap();
            let mut cache = KvCache::new(run.gpt()).unwrap();
            let columns = run.gpt().logit_columns();
            for (t, token) in tokens.iter().enumerate() {
                let got = run.gpt().decode(*token, &mut cache).unwrap().to_vec().unwrap();
                for (a, b) in got.iter().zip(&want[t * columns..(t + 1) * columns]) {
                    // Norms carry roundings of 2^-24 on, a few dozen of them, onto logits of the order of 1.
                    assert!((a - b).abs() < 1e-4 * (1.0 + b.abs()), "{method}, token {t}: {a}, want {b}");
                }
            }
        }
    }
}

#[test]
fn the_memory_estimate_is_near_what_is_held() {
    let context = &every_tier()[0];
    let shape = BatchShape { batch: 8, block: 64, accumulate: 1 };
    let of = |method: &str| {
        let config = GptConfig { layers: 3, heads: 4, embd: 128, block: 64, ..config(method) };
        GptRun::new(context, config, shape, AdamWOptions::default(), 1, DType::F32).unwrap()
    };
    let tensors = parameters(&mut of("none"));
    context.trim();
    let before = context.held_bytes();
    let mut student = of("onebit");
    student.learn_from(&tensors).unwrap();
    let (inputs, targets) = batch(1, 512);
    student.train_step(&inputs, &targets).unwrap();
    student.export().unwrap();
    let (estimated, held) = (student.estimated_bytes() as f64, (student.peak_bytes() - before) as f64);
    // As for a run in full precision (tests/training.rs).
    assert!((0.8..1.25).contains(&(estimated / held)), "estimated {estimated}, held {held}");
}

#[test]
fn what_cannot_be_learned_from_is_refused() {
    let context = &every_tier()[0];
    let tensors = parameters(&mut run(context, "none", SHAPE, DType::F32));
    let error = run(context, "bwn", SHAPE, DType::F32).learn_from(&tensors).unwrap_err().to_string();
    assert!(error.starts_with("teacher: expected a method that learns from one"), "{error}");
    let fewer = &tensors[1..];
    let error = run(context, "onebit", SHAPE, DType::F32).learn_from(fewer).unwrap_err().to_string();
    assert!(error.contains(&tensors[0].0), "{error}");
}
