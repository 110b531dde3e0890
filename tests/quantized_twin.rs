//! Quantized training, step for step, against a whole model, its quantizers and its optimizer in float64: where an ordering of methods is not the
//! published one, this says whether the device trains what the papers describe.

mod common;

use common::{Gen, U32, best_tiers, encoded, every_tier, passes, text, wide};
use std::cell::RefCell;
use walsh::nn::{Gpt, GptConfig, Probe, ProbedInput, TrainPass};
use walsh::op::LossOptions;
use walsh::optim::{AdamW, AdamWOptions, Correction, Schedule, StepState};
use walsh::qat;
use walsh::reference::adamw::lambda;
use walsh::reference::gpt::{self as reference, Pull};
use walsh::reference::hadamard::hadamard;
use walsh::reference::quantized_linear::{Operand, Passes, Quantizer, Rule};
use walsh::train::{BatchShape, GptRun, Model, PendingStats};
use walsh::{Context, DType, Tensor};

const LAYERS: usize = 2;
const VOCAB: u32 = 21;
const SHAPE: BatchShape = BatchShape { batch: 3, block: 16, accumulate: 1 };
const TOKENS: usize = SHAPE.batch * SHAPE.block;

/// A method as the library spells it, and as the papers have it.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    quantizer: qat::Quantizer,
    twin: Quantizer,
    correction: Option<Correction>,
}

fn case(name: &'static str, method: &str, format: &str, block: Option<u32>, rule: Rule) -> Case {
    let format = format.parse().unwrap();
    Case {
        name,
        quantizer: qat::Quantizer::new(method.parse().unwrap(), format, Some(format), block).unwrap(),
        twin: Quantizer { weights: rule, inputs: rule, block: block.map(|n| n as usize) },
        correction: None,
    }
}

/// Not all of the width: what a layer norm without a weight returns has the sum 0, which a transform of all of it would make an element that is 0,
/// half-way between two levels of a grid without zero.
const BLOCK: Option<u32> = Some(16);
const THREE: &str = "int3:row:f32:centred:mse";
const FOUR: &str = "int4:row:f32:centred:mse";

fn quest(name: &'static str, block: Option<u32>) -> Case {
    case(name, "quest", THREE, block, rows(3, Passes::Trusted))
}

fn rows(bits: usize, passes: Passes) -> Rule {
    Rule::Rows { bits, passes }
}

fn methods(steps: u32) -> Vec<Case> {
    vec![
        quest("quest, rotated", BLOCK),
        quest("quest", None),
        case("ste", "ste", THREE, None, rows(3, Passes::Everywhere)),
        case("lsq", "lsq", "int3:tensor:f32:full", None, Rule::Learned { bits: 3 }),
        Case {
            correction: Some(Correction { silence: 0.2, ..Correction::cage(steps) }),
            ..case("cage on quest, rotated", "quest", FOUR, BLOCK, rows(4, Passes::Trusted))
        },
    ]
}

/// What the methods leave out.
fn others(steps: u32) -> Vec<Case> {
    vec![
        case("lsq, rotated", "lsq", "int4:tensor:f32:full", BLOCK, Rule::Learned { bits: 4 }),
        Case {
            correction: Some(Correction { coupled: true, silence: 0.2, ..Correction::cage(steps) }),
            ..case("cage on clipped, coupled", "clipped", FOUR, None, rows(4, Passes::Within(1.0)))
        },
        case("quest, binary, rotated", "quest", "binary:mse", BLOCK, rows(1, Passes::Trusted)),
    ]
}

impl Case {
    fn config(&self) -> GptConfig {
        GptConfig {
            layers: LAYERS,
            heads: 2,
            embd: 32,
            block: SHAPE.block,
            vocab: VOCAB as usize,
            dropout: 0.0,
            bias: false,
            quantizer: Some(self.quantizer),
        }
    }

    fn options(&self) -> AdamWOptions {
        AdamWOptions {
            schedule: Schedule::constant(LR),
            betas: (0.9, 0.99),
            weight_decay: 0.1,
            clip: 1.0,
            correction: self.correction,
            ..AdamWOptions::default()
        }
    }

    /// The constants of step `step`, from 0.
    fn update(&self, step: u32) -> reference::Update {
        let o = self.options();
        let pull =
            |c: Correction| Pull { lambda: lambda(step, c.steps, c.lambda, c.silence, c.constant), coupled: c.coupled };
        reference::Update {
            lr: LR,
            betas: o.betas,
            eps: o.eps,
            weight_decay: o.weight_decay,
            clip: o.clip,
            pull: self.correction.map(pull),
        }
    }

    fn twin(&self, gpt: &Gpt) -> reference::Gpt {
        let values = gpt.parameters().iter().map(|(_, t)| wide(&t.to_vec().unwrap())).collect();
        reference::Gpt::new(self.config(), gpt.logit_columns(), values).quantized(self.twin)
    }
}

const LR: f64 = 3e-3;

/// How far inputs of layers may be from the twin's, as a share of the sum of magnitude and root mean square of the row, both rotated: rounding
/// along the residual stream, which the test measures.
const DRIFT: f64 = 32.0 * U32;
/// How far a value in units of its scale may be off by the quantizer's own rounding, in the same terms: 20 for the root mean square of a row of 128,
/// in sums of 32; for a transform of 16 five roundings of numbers that no sum of magnitudes exceeds, which is 4 root mean squares of a block, each at most
/// the root of 8 of that of the row; three for the division.
const OWN: f64 = 96.0 * U32;
/// Inputs with such a clearance have the same levels and the same gradients on both sides. The root mean square drifts by at most twice as much.
const CLEAR: f64 = 3.0 * DRIFT + OWN;

fn smallest(operand: &Operand) -> f64 {
    operand.clearance.iter().copied().fold(f64::INFINITY, f64::min)
}

fn root_mean_square(x: &[f64]) -> f64 {
    (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64).sqrt()
}

fn norm(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|v| v * v).sum::<f64>().sqrt()
}

/// The distance in the Euclidean norm.
fn distance(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    norm(got.iter().zip(want).map(|(g, w)| f64::from(*g) - w))
}

/// Moves weights that are so near a jump that rounding may decide, on both sides.
fn clear_weights(gpt: &Gpt, twin: &mut reference::Gpt) {
    for linear in 0..4 * LAYERS {
        let index = twin.weight_index(linear);
        for round in 0.. {
            let operand = twin.weight(linear);
            if smallest(&operand) >= OWN {
                break;
            }
            assert!(round < 20, "weights of layer {linear} stay near a jump");
            let step = 1e-3 * root_mean_square(&operand.rotated);
            let moves: Vec<f64> = operand.clearance.iter().map(|c| if *c < OWN { step } else { 0.0 }).collect();
            let moves = twin.quantizer.block.map_or(moves.clone(), |n| hadamard(&moves, n, true));
            let moved: Vec<f32> = twin.parameters[index].iter().zip(&moves).map(|(w, m)| (w + m) as f32).collect();
            gpt.parameters()[index].write(bytemuck::cast_slice(&moved)).unwrap();
            twin.parameters[index] = wide(&moved);
        }
    }
}

/// What a layer is given on the device, and what its quantizer makes of it: levels, and where gradients pass.
struct Seen {
    input: Vec<f64>,
    values: Vec<f64>,
    passes: Vec<bool>,
}

/// The inputs of all layers.
fn look(gpt: &Gpt, twin: &reference::Gpt, tokens: &Tensor) -> Vec<Seen> {
    let context = gpt.parameters().context();
    let seen = RefCell::new(Vec::new());
    let input = |ProbedInput { index, values: x, codes }: ProbedInput<'_>| {
        let mut seen = seen.borrow_mut();
        assert_eq!(index, twin.weight_index(seen.len()));
        if twin.quantizer.learns()[1] {
            seen.push(Seen { input: wide(&x.to_vec()?), values: Vec::new(), passes: Vec::new() });
            return Ok(());
        }
        let coding = gpt.config().quantizer.and_then(|quantizer| quantizer.activation_coding()).unwrap();
        let shape = [x.rows(), x.columns()];
        let (values, passes) = match codes {
            Some((packed, mask)) => (packed.to_host(context)?.dequantize(), passes(shape, mask)),
            None => {
                let (values, _, passes) = encoded(context, x, shape, &coding);
                (values, passes)
            }
        };
        seen.push(Seen { input: wide(&x.to_vec()?), values, passes });
        Ok(())
    };
    context.no_grad(|| gpt.probed_logits(tokens, None, Probe { input: Some(&input), ..Probe::default() })).unwrap();
    assert_eq!(seen.borrow().len(), 4 * LAYERS);
    seen.into_inner()
}

/// Checks that the device's inputs have drifted no farther than [`DRIFT`], and lets the device decide what the drift and rounding may decide.
/// Where scales are learned there must be nothing of that kind. Returns how many elements that were.
fn agree(what: &str, twin: &reference::Gpt, linear: usize, own: &mut Operand, seen: &Seen) -> usize {
    let cols = if linear % 4 == 3 { 4 } else { 1 } * twin.config.embd;
    let errors: Vec<f64> = seen.input.iter().zip(&own.original).map(|(device, twin)| device - twin).collect();
    let errors = twin.quantizer.block.map_or(errors.clone(), |n| hadamard(&errors, n, false));
    for (row, (errors, x)) in errors.chunks_exact(cols).zip(own.rotated.chunks_exact(cols)).enumerate() {
        let unit = root_mean_square(x);
        for (error, x) in errors.iter().zip(x) {
            let share = error.abs() / (x.abs() + unit);
            assert!(share <= DRIFT, "{what}: the input of layer {linear} is {share:.2e} off in row {row}");
        }
    }
    if twin.quantizer.learns()[1] {
        assert!(smallest(own) >= CLEAR, "{what}: layer {linear}");
        return 0;
    }
    let near: Vec<usize> = (0..own.values.len()).filter(|at| own.clearance[*at] < CLEAR).collect();
    near.iter().for_each(|at| own.choose(*at, seen.values[*at], seen.passes[*at]));
    near.len()
}

/// Whether a text's pass leaves nothing to rounding.
fn is_clear(twin: &reference::Gpt, seed: u64) -> bool {
    let (tokens, targets) = text(seed, TOKENS, VOCAB);
    let mut clear = true;
    twin.pass(&tokens, &targets, SHAPE.batch, None, &mut |_, input| clear &= smallest(input) >= CLEAR);
    clear
}

fn on_device(context: &Context, tokens: &[u32]) -> Tensor {
    Tensor::from_u32(context, tokens, &[SHAPE.batch, SHAPE.block]).unwrap()
}

/// Learned scales as a run starts with them; the twin goes on with the device's.
fn initialize(what: &str, gpt: &Gpt, twin: &mut reference::Gpt, from: u64) {
    // Scales depend on the text, and what rounding decides on the scales: they are set again until nothing was moved.
    let mut own = twin.clone();
    let clear = |seed: &u64| {
        own.initialize_scales(&text(*seed, TOKENS, VOCAB).0, SHAPE.batch);
        let before = own.parameters.clone();
        clear_weights(gpt, &mut own);
        own.parameters == before && is_clear(&own, *seed)
    };
    let seed = (from..from + 500).find(clear).expect("a text that leaves nothing to rounding");
    let tokens = on_device(gpt.parameters().context(), &text(seed, TOKENS, VOCAB).0);
    gpt.initialize_scales(&tokens).unwrap();
    let scales = |linear| own.scale_indices(linear).into_iter().flatten().map(move |index| (linear, index));
    for (linear, index) in (0..4 * LAYERS).flat_map(scales).collect::<Vec<_>>() {
        let (got, want) = (f64::from(gpt.parameters()[index].item().unwrap()), own.parameters[index][0]);
        assert!((got - want).abs() <= 32.0 * U32 * want, "{what}: scale of layer {linear} starts as {got}, not {want}");
        own.parameters[index][0] = got;
    }
    *twin = own;
}

/// Losses, gradients, scales and updates, each from the device's parameters and moments of that step.
#[test]
fn steps_agree_with_float64_where_rounding_decides_nothing() {
    const STEPS: u32 = 4;
    for context in every_tier() {
        for case in methods(STEPS).into_iter().chain(others(STEPS)) {
            follow(&context, &case, STEPS);
        }
    }
}

fn follow(context: &Context, case: &Case, steps: u32) {
    let gpt = Gpt::new(context, case.config(), 11, DType::F32).unwrap();
    let p = gpt.parameters();
    let mut optimizer = AdamW::new(p, case.options()).unwrap();
    let decays: Vec<bool> = p.iter().map(|(info, _)| info.decay).collect();
    let mut twin = case.twin(&gpt);
    for step in 0..steps {
        let what = format!("{} on {}, step {step}", case.name, context.tier());
        for index in 0..p.len() {
            twin.parameters[index] = wide(&p[index].to_vec().unwrap());
            twin.moments[index] = optimizer.moments(p, index).unwrap().map(|m| wide(&m.to_vec().unwrap()));
        }
        let on_device = |tokens: &[u32]| on_device(context, tokens);
        let first = u64::from(step) * 1000;
        if step == 0 && case.twin.learns()[0] {
            initialize(&what, &gpt, &mut twin, first);
        }
        clear_weights(&gpt, &mut twin);
        // Where scales are learned, what the device decides cannot be asked for.
        let seed = (first..first + 500).find(|seed| !case.twin.learns()[1] || is_clear(&twin, *seed));
        let seed = seed.expect("a text that leaves nothing to rounding");
        let (inputs, targets) = text(seed, TOKENS, VOCAB);
        let (tokens, wanted) = (on_device(&inputs), on_device(&targets));
        let seen = look(&gpt, &twin, &tokens);
        let mut near = 0;
        let pass = twin.pass(&inputs, &targets, SHAPE.batch, None, &mut |linear, own| {
            near += agree(&what, &twin, linear, own, &seen[linear]);
        });
        // Exact zeros, sums of as many products of either sign, are half-way between two levels.
        let elements: usize = seen.iter().map(|seen| seen.input.len()).sum();
        assert!(near * 50 < elements, "{what}: rounding decides {near} of {elements}");

        let train = TrainPass { state: optimizer.state(), seed: 9, micro: 0 };
        let options = LossOptions { classes: Some(VOCAB as usize), ..LossOptions::default() };
        let loss = gpt.logits(&tokens, Some(train)).unwrap().cross_entropy(&wanted, options).unwrap();
        loss.backward().unwrap();
        // As in full precision, about 20 products deep: no level and no mask differs, and between jumps everything is smooth.
        let bound = 20.0 * U32;
        let got = f64::from(loss.item().unwrap());
        assert!((got - pass.loss).abs() <= bound * pass.loss, "{what}: loss {got} {}", pass.loss);
        let gradients: Vec<Vec<f32>> = (0..p.len()).map(|i| p.gradient(i).unwrap().to_vec().unwrap()).collect();
        for (index, (info, _)) in p.iter().enumerate() {
            let size = match pass.scales.iter().find(|(scale, _)| *scale == index) {
                Some((_, scale)) => scale.size,
                None => norm(pass.gradients[index].iter().copied()),
            };
            let off = distance(&gradients[index], &pass.gradients[index]);
            assert!(off <= bound * size, "{what}: gradient of {}: {off:.2e} of {size:.2e}", info.name);
        }

        let before = twin.clone();
        optimizer.step_toward(p, &gpt).unwrap();
        let gradients: Vec<Vec<f64>> = gradients.iter().map(|g| wide(g)).collect();
        let size = twin.update(&gradients, case.update(step), |index| decays[index]);
        let state: StepState = bytemuck::pod_read_unaligned(&optimizer.read_state().unwrap().wait().unwrap());
        assert!(
            (f64::from(state.grad_norm) - size).abs() <= 64.0 * U32 * size,
            "{what}: norm {} {size}",
            state.grad_norm
        );
        for (index, (info, tensor)) in p.iter().enumerate() {
            let moments = optimizer.moments(p, index).unwrap();
            for (order, got) in moments.iter().enumerate() {
                let [old, want] = [&before, &twin].map(|twin| &twin.moments[index][order]);
                let off = distance(&got.to_vec().unwrap(), want);
                // What was added may cancel what was there.
                let size = norm(old.iter().copied()) + norm(want.iter().copied());
                assert!(off <= 32.0 * U32 * size, "{what}: moment {order} of {}: {off:.2e} of {size:.2e}", info.name);
            }
            let (old, new) = (&before.parameters[index], &twin.parameters[index]);
            let moved = norm(old.iter().zip(new).map(|(old, new)| new - old));
            let off = distance(&tensor.to_vec().unwrap(), new);
            let adam = LR * (new.len() as f64).sqrt();
            let update = case.update(step);
            let pulled = (0..4 * LAYERS).any(|linear| twin.weight_index(linear) == index);
            let cancelled = match update.pull {
                Some(Pull { lambda, coupled: true }) if pulled => {
                    let factor = (update.clip / size).min(1.0);
                    // As many roundings as the norm has above, and for Q(w) those of a row's root mean square, see OWN.
                    let off =
                        |i: usize| U32 * (66.0 * factor * gradients[index][i].abs() + 24.0 * lambda * old[i].abs());
                    sensitivity([&before, &twin].map(|twin| &twin.moments[index]), step, update, off)
                }
                _ => 0.0,
            };
            let bound = U32 * (64.0 * (moved + adam) + 4.0 * norm(new.iter().copied())) + cancelled;
            assert!(off <= bound, "{what}: update of {}: {off:.2e} of {moved:.2e}", info.name);
        }
    }
}

/// How far an update may be off where the sum of a gradient and CAGE's pull is off by as much as `off` says: either is right to some roundings of
/// its own, but where they cancel, Adam makes a part of a step of those.
fn sensitivity(
    [before, after]: [&[Vec<f64>; 2]; 2],
    step: u32,
    update: reference::Update,
    off: impl Fn(usize) -> f64,
) -> f64 {
    let reference::Update { lr, betas: (beta1, beta2), eps, .. } = update;
    let [correction1, correction2] = [beta1, beta2].map(|beta| 1.0 - beta.powi(step as i32 + 1));
    norm((0..before[0].len()).map(|i| {
        let of = |sum: f64| {
            let mean = beta1 * before[0][i] + (1.0 - beta1) * sum;
            let square = beta2 * before[1][i] + (1.0 - beta2) * sum * sum;
            mean / correction1 / ((square / correction2).sqrt() + eps)
        };
        let sum = (after[0][i] - beta1 * before[0][i]) / (1.0 - beta1);
        lr * (of(sum + off(i)) - of(sum)).abs().max((of(sum - off(i)) - of(sum)).abs())
    }))
}

/// What a run comes to.
struct Run {
    losses: Vec<f64>,
    /// `|W - Q(W)| / |W|` of all quantized weights at its end.
    grid: f64,
}

impl Run {
    /// How far losses are from those of another run, in the root mean square, and the weights' distances to the grid.
    fn apart(&self, other: &Self) -> [f64; 2] {
        let losses: Vec<f64> = self.losses.iter().zip(&other.losses).map(|(a, b)| a - b).collect();
        [root_mean_square(&losses), (self.grid - other.grid).abs()]
    }
}

fn grid_distance(twin: &reference::Gpt) -> f64 {
    let weights: Vec<Operand> = (0..4 * LAYERS).map(|linear| twin.weight(linear)).collect();
    let errors = weights.iter().flat_map(|w| w.rotated.iter().zip(&w.values).map(|(x, q)| x - q));
    norm(errors) / norm(weights.iter().flat_map(|w| w.rotated.iter().copied()))
}

fn free_twin(case: &Case, mut twin: reference::Gpt, decays: &[bool], steps: u32) -> Run {
    let mut losses = Vec::new();
    for step in 0..steps {
        let (inputs, targets) = text(step.into(), TOKENS, VOCAB);
        if step == 0 && case.twin.learns()[0] {
            twin.initialize_scales(&inputs, SHAPE.batch);
        }
        let (loss, gradients) = twin.loss_and_gradients(&inputs, &targets, SHAPE.batch, None);
        twin.update(&gradients, case.update(step), |index| decays[index]);
        losses.push(loss);
    }
    Run { losses, grid: grid_distance(&twin) }
}

fn free_device(case: &Case, run: &mut GptRun, steps: u32) -> Run {
    let mut losses = Vec::new();
    for step in 0..steps {
        let (inputs, targets) = text(step.into(), TOKENS, VOCAB);
        run.train_step(&inputs, &targets).unwrap();
        losses.push(run.stats().unwrap().wait().unwrap().loss);
    }
    Run { losses, grid: grid_distance(&case.twin(run.gpt())) }
}

/// Runs whose states nobody aligns. Whether and when rounding makes a first level flip is luck (some runs stay within 1e-7 throughout), and from then
/// on two of them are as far apart as any two whose weights differ a little: as far as runs of the twin itself from weights that are off by up to
/// 2^-10, some 100 of which are quantized to other levels at once.
#[test]
fn free_runs_are_no_farther_from_the_twin_than_its_own_with_other_levels() {
    const STEPS: u32 = 24;
    // Single steps are compared on all tiers.
    let contexts = best_tiers();
    for case in methods(STEPS) {
        let mut twins = None;
        for context in &contexts {
            let mut run = GptRun::new(context, case.config(), SHAPE, case.options(), 11, DType::F32).unwrap();
            // Initial weights are drawn on the host.
            let (twin, bounds) = twins.get_or_insert_with(|| {
                let start = case.twin(run.gpt());
                let decays: Vec<bool> = run.gpt().parameters().iter().map(|(info, _)| info.decay).collect();
                let own = free_twin(&case, start.clone(), &decays, STEPS);
                let mut random = Gen::new(1);
                let mut bounds = [0.0f64; 2];
                for _ in 0..3 {
                    let mut other = start.clone();
                    let off = |random: &mut Gen| 1.0 + (2.0 * random.unit() - 1.0) / 1024.0;
                    other.parameters.iter_mut().flatten().for_each(|w| *w *= off(&mut random));
                    let apart = free_twin(&case, other, &decays, STEPS).apart(&own);
                    // Three are few to tell the largest distance from.
                    bounds = [0, 1].map(|i| bounds[i].max(3.0 * apart[i]));
                }
                if case.correction.is_some() {
                    // The bound would tell if there were no pull.
                    let base = free_twin(&Case { correction: None, ..case }, start, &decays, STEPS);
                    assert!(base.apart(&own)[1] > bounds[1], "{} without a pull, {} with one", base.grid, own.grid);
                }
                (own, bounds)
            });
            let device = free_device(&case, &mut run, STEPS);
            let apart = device.apart(twin);
            let what = format!("{} on {}", case.name, context.tier());
            assert!(apart[0] <= bounds[0], "{what}: losses {apart:?} apart, runs of the twin {bounds:?}");
            assert!(
                apart[1] <= bounds[1],
                "{what}: distances to the grid {apart:?} apart, runs of the twin {bounds:?}"
            );
            assert!(device.losses[STEPS as usize - 1] < 0.8 * device.losses[0], "{what}: {:?}", device.losses);
        }
    }
}
