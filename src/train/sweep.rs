//! From what a comparison is asked for to its runs.

use super::config::{Overrides, Preset, Sweep, TrainConfig};
use crate::optim::Optimizer;
use crate::qat::{Asked, Method, Rotation, Settings, Ste};
use crate::{Error, Result};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::marker::PhantomData;

/// A row of a comparison by name: a `[[run]]` of its file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Combination {
    /// The method; `ste` where there are weights.
    pub method: Option<Method>,
    /// Format of weights; the method's, or dense, if there is none.
    pub weights: Option<Asked>,
    /// Format of inputs; the method's, or dense, if there is none.
    pub activations: Option<Asked>,
    /// Block of the rotation; the method's if there is none.
    pub hadamard: Option<Rotation>,
    /// The optimizer; adamw if there is none.
    pub optimizer: Option<Optimizer>,
    /// Learning rates to choose from; those of the whole comparison if there are none.
    #[serde(deserialize_with = "one_or_many")]
    pub lr: Vec<f64>,
}

/// Reads a list, or one value as a list of it.
pub(super) fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct OneOrMany<T>(PhantomData<T>);

    impl<T> OneOrMany<T> {
        fn one<'de, E: serde::de::Error>(value: impl IntoDeserializer<'de, E>) -> Result<Vec<T>, E>
        where
            T: Deserialize<'de>,
        {
            T::deserialize(value.into_deserializer()).map(|value| vec![value])
        }
    }

    impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMany<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a value or a list of values")
        }

        fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Vec<T>, E> {
            Self::one(value)
        }

        fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Vec<T>, E> {
            Self::one(value)
        }

        fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Vec<T>, E> {
            Self::one(value)
        }

        fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Vec<T>, E> {
            Self::one(value)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, values: A) -> Result<Vec<T>, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(values))
        }
    }

    deserializer.deserialize_any(OneOrMany(PhantomData))
}

/// One run of a comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Its directory's name, made of what tells it from the others.
    pub name: String,
    /// What is asked for.
    pub overrides: Overrides,
    /// All settings.
    pub config: TrainConfig,
}

/// What a row differs in, but for steps and seeds.
#[derive(Clone)]
struct Variant<'a> {
    method: Option<Method>,
    weights: Option<Asked>,
    activations: Option<Asked>,
    hadamard: Option<Rotation>,
    optimizer: Option<Optimizer>,
    lr: &'a [f64],
}

impl Variant<'_> {
    fn is_full(&self) -> bool {
        self.method == Some(Method::None)
            || (self.method.is_none() && self.weights.is_none_or(|weights| weights == Asked::Dense))
    }
}

/// The largest number that divides both.
fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Sweep {
    /// The runs: of each number of steps first those in full precision, then the others in the order in which they were asked for. No run
    /// comes twice, and each keeps one checkpoint beside the best unless `keep` says otherwise. Where methods learn from a teacher and none is
    /// named, runs in full precision come before them all, with a checkpoint of each evaluation: the best of them must be there.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the flag.
    pub fn plan(&self, preset: Preset) -> Result<Vec<Planned>> {
        let mut variants = self.variants()?;
        let taught = |variant: &Variant<'_>| variant.method.is_some_and(|method| method.distillation().is_some());
        let teaching = self.teacher.is_none() && variants.iter().any(taught);
        if let (Some(dir), false) = (&self.teacher, variants.iter().any(taught)) {
            return Err(Error::invalid(
                "--teacher",
                "none without a method that learns from one (onebit)",
                dir.display().to_string(),
            ));
        }
        if teaching {
            if !variants.iter().any(Variant::is_full) {
                let expected = "--teacher beside it for a method that learns from one (onebit)";
                return Err(Error::invalid("--no-full", expected, "no --teacher"));
            }
            variants.sort_by_key(|variant| !variant.is_full());
        }
        let mut plan: Vec<Planned> = Vec::new();
        for steps in choices(&self.steps) {
            for variant in &variants {
                for lr in choices(variant.lr) {
                    for seed in choices(&self.seeds) {
                        let Variant { method, weights, activations, hadamard, optimizer, .. } = *variant;
                        let overrides = Overrides {
                            preset: Some(preset),
                            method,
                            weights,
                            activations,
                            hadamard,
                            optimizer,
                            lr,
                            steps,
                            seed,
                            keep: Some(self.keep.unwrap_or(1)),
                            teacher: self.teacher.clone().filter(|_| taught(variant)),
                            ..self.shared()
                        };
                        let mut overrides = overrides;
                        let mut config = overrides.fresh(preset)?;
                        if teaching && variant.is_full() {
                            config.checkpoint_every = gcd(config.checkpoint_every, config.eval_every);
                            overrides.checkpoint_every = Some(config.checkpoint_every);
                        }
                        let name = name(&config);
                        if plan.iter().all(|other| other.name != name) {
                            plan.push(Planned { name, overrides, config });
                        }
                    }
                }
            }
        }
        Ok(plan)
    }

    /// These flags over the settings of a file, its rows' own learning rates among them.
    #[must_use]
    pub fn over_file(self, mut file: Self) -> Self {
        if !self.lr.is_empty() {
            file.run.iter_mut().for_each(|run| run.lr.clear());
        }
        self.over(file)
    }

    fn variants(&self) -> Result<Vec<Variant<'_>>> {
        let none = Some(Method::None);
        let full =
            Variant { method: none, weights: None, activations: None, hadamard: None, optimizer: None, lr: &self.lr };
        let mut variants = if self.run.is_empty() { self.lists(&full)? } else { self.combinations()? };
        if !self.no_full && !variants.iter().any(Variant::is_full) {
            variants.insert(0, full);
        }
        if variants.is_empty() {
            return Err(Error::invalid("--no-full", "--weights to compare beside it", "none"));
        }
        Ok(variants)
    }

    /// All that the lists of methods, formats, rotations and optimizers give together.
    fn lists<'a>(&'a self, full: &Variant<'a>) -> Result<Vec<Variant<'a>>> {
        let quantized = !(self.weights.is_empty() && self.activations.is_empty() && self.hadamard.is_empty());
        let ste: &[Method] = if quantized { &[Method::Ste(Ste)] } else { &[] };
        let methods = if self.methods.is_empty() { ste } else { &self.methods };
        if quantized && methods.iter().all(|method| *method == Method::None) {
            // Settings that no run would have.
            let activations = self.activations.iter().find(|a| **a != Asked::Dense);
            Method::None.quantizer(&Settings {
                weights: self.weights.first().copied(),
                activations: activations.copied(),
                hadamard: self.hadamard.first().copied(),
                ..Settings::default()
            })?;
        }
        let adamw = [Optimizer::AdamW];
        let corrected = methods.iter().any(Method::takes_correction);
        if let Some(optimizer) = self.optimizers.iter().find(|o| **o != Optimizer::AdamW).filter(|_| !corrected) {
            let expected = if methods.iter().any(Method::trains_quantized) {
                "adamw where the signs of --methods are no grid for the weights behind them"
            } else {
                "adamw where no --methods train with quantized operands"
            };
            return Err(Error::invalid("--optimizers", expected, optimizer.to_string()));
        }
        let mut variants = Vec::new();
        for &method in methods {
            if method == Method::None {
                variants.push(full.clone());
                continue;
            }
            let optimizers = if method.takes_correction() { &self.optimizers[..] } else { &adamw };
            for hadamard in choices(&self.hadamard) {
                for activations in choices(&self.activations) {
                    for weights in choices(&self.weights) {
                        for optimizer in choices(optimizers) {
                            let method = Some(method);
                            variants.push(Variant { method, weights, activations, hadamard, optimizer, lr: full.lr });
                        }
                    }
                }
            }
        }
        Ok(variants)
    }

    /// The rows by name.
    fn combinations(&self) -> Result<Vec<Variant<'_>>> {
        let lists = [
            ("--methods", self.methods.is_empty()),
            ("--weights", self.weights.is_empty()),
            ("--activations", self.activations.is_empty()),
            ("--hadamard", self.hadamard.is_empty()),
            ("--optimizers", self.optimizers.is_empty()),
        ];
        if let Some((flag, _)) = lists.into_iter().find(|(_, empty)| !empty) {
            return Err(Error::invalid(flag, "no list beside rows by name ([[run]])", "one"));
        }
        let rows = self.run.iter().map(|run| {
            let Combination { method, weights, activations, hadamard, optimizer, .. } = *run;
            let lr = if run.lr.is_empty() { &self.lr } else { &run.lr };
            Variant { method, weights, activations, hadamard, optimizer, lr }
        });
        Ok(rows.collect())
    }
}

/// The runs of `plan` that may teach `planned`: those in full precision with its steps and seed.
pub fn teachers<'a>(plan: &'a [Planned], planned: &Planned) -> impl Iterator<Item = &'a Planned> {
    let (steps, seed) = (planned.config.steps, planned.config.seed);
    let full = move |other: &&Planned| other.config.weights.is_none();
    plan.iter().filter(full).filter(move |other| (other.config.steps, other.config.seed) == (steps, seed))
}

fn choices<T: Copy>(values: &[T]) -> Vec<Option<T>> {
    if values.is_empty() { vec![None] } else { values.iter().copied().map(Some).collect() }
}

/// What tells a run from the others of its comparison, as the name of a directory.
fn name(config: &TrainConfig) -> String {
    let mut name = config.method.to_string();
    for (what, format) in [("weights", config.weights), ("activations", config.activations)] {
        if let Some(format) = format {
            name.push_str(&format!(",{what}={format}"));
        }
    }
    if let Some(block) = config.hadamard {
        name.push_str(&format!(",hadamard={block}"));
    }
    if config.optimizer != Optimizer::AdamW {
        name.push_str(&format!(",optimizer={}", config.optimizer));
    }
    name.push_str(&format!(",lr={},steps={},seed={}", config.lr, config.steps, config.seed));
    // Not every system has colons in names.
    name.replace(':', ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(sweep: &Sweep) -> Vec<String> {
        sweep.plan(Preset::Nano).unwrap().into_iter().map(|planned| planned.name).collect()
    }

    fn formats(names: &[&str]) -> Vec<Asked> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn lists_multiply() {
        assert_eq!(names(&Sweep::default()), ["none,lr=0.004,steps=1500,seed=1337"]);
        let sweep = Sweep {
            weights: formats(&["int4", "int2:row"]),
            activations: formats(&["dense", "int8:row"]),
            lr: vec![0.001, 0.002],
            steps: vec![20],
            seeds: vec![1, 2, 1],
            ..Sweep::default()
        };
        let plan = sweep.plan(Preset::Nano).unwrap();
        assert_eq!(plan.len(), (1 + 2 * 2) * 2 * 2);
        assert_eq!(plan[0].name, "none,lr=0.001,steps=20,seed=1");
        assert_eq!(plan[1].name, "none,lr=0.001,steps=20,seed=2");
        assert_eq!(plan[2].name, "none,lr=0.002,steps=20,seed=1");
        assert_eq!(plan[4].name, "ste,weights=int4,lr=0.001,steps=20,seed=1");
        let last = &plan[plan.len() - 1];
        assert_eq!(last.name, "ste,weights=int2.row,activations=int8.row,lr=0.002,steps=20,seed=2");
        assert_eq!((last.config.weights, last.config.method), (formats(&["int2:row"])[0].format(), Method::Ste(Ste)));
        assert_eq!((last.config.lr, last.config.steps, last.config.seed, last.config.keep), (0.002, 20, 2, 1));

        let without = Sweep { no_full: true, steps: vec![20, 40], ..sweep.clone() };
        assert_eq!(names(&without).len(), 2 * 4 * 2 * 2);
        let both = Sweep { methods: vec![Method::Ste(Ste), Method::None], ..sweep };
        let both = names(&both);
        assert_eq!(both.len(), plan.len());
        assert!(both[0].starts_with("ste") && both[both.len() - 1].starts_with("none"), "{both:?}");
    }

    #[test]
    fn rows_by_name_have_their_own_rates() {
        let row = |weights: &str, lr: &[f64]| Combination {
            weights: Some(weights.parse().unwrap()),
            lr: lr.to_vec(),
            ..Combination::default()
        };
        let sweep = Sweep {
            run: vec![row("int4", &[]), row("int2", &[0.01, 0.02])],
            lr: vec![0.003],
            steps: vec![9],
            ..Sweep::default()
        };
        assert_eq!(
            names(&sweep),
            [
                "none,lr=0.003,steps=9,seed=1337",
                "ste,weights=int4,lr=0.003,steps=9,seed=1337",
                "ste,weights=int2,lr=0.01,steps=9,seed=1337",
                "ste,weights=int2,lr=0.02,steps=9,seed=1337",
            ]
        );
        let rates = Sweep { lr: vec![0.25], ..Sweep::default() }.over_file(sweep.clone());
        assert!(names(&rates).iter().all(|name| name.contains("lr=0.25,")), "{:?}", names(&rates));
        assert_eq!(names(&Sweep::default().over_file(sweep.clone())), names(&sweep));
        let full = Combination { lr: vec![0.5], ..Combination::default() };
        let own = Sweep { run: vec![row("int4", &[]), full], ..sweep };
        assert_eq!(names(&own)[1], "none,lr=0.5,steps=9,seed=1337");
        assert_eq!(names(&own).len(), 2);
    }

    #[test]
    fn optimizers_multiply_what_trains_quantized() {
        let optimizers = vec![Optimizer::AdamW, "cage:lambda=5".parse().unwrap()];
        let methods = ["none", "ptq", "quest"].map(|name| name.parse().unwrap()).to_vec();
        let weights = formats(&["int4"]);
        let sweep = Sweep { methods, weights, optimizers: optimizers.clone(), steps: vec![9], ..Sweep::default() };
        let quest = "quest,weights=int4.row.f32.centred.mse,hadamard=64";
        let end = "lr=0.004,steps=9,seed=1337";
        let expected = [
            format!("none,{end}"),
            format!("ptq,weights=int4,{end}"),
            format!("{quest},{end}"),
            format!("{quest},optimizer=cage.lambda=5,{end}"),
        ];
        assert_eq!(names(&sweep), expected);
        // Signs of size 1 are no grid for what is behind them.
        let methods = ["onebit", "bwn"].map(|name| name.parse().unwrap()).to_vec();
        let sweep = Sweep { methods, optimizers, steps: vec![9], ..Sweep::default() };
        let bwn = "bwn,weights=binary";
        let cage = format!("{bwn},optimizer=cage.lambda=5");
        let own = ["none", "onebit,weights=binary.tensor", bwn, &cage];
        assert_eq!(names(&sweep), own.map(|row| format!("{row},{end}")));
        let row = |method: &str, optimizer: Option<&str>| Combination {
            method: Some(method.parse().unwrap()),
            weights: formats(&["int4"]).pop(),
            optimizer: optimizer.map(|name| name.parse().unwrap()),
            ..Combination::default()
        };
        let run = vec![row("quest", None), row("quest", Some("cage:lambda=5")), row("ptq", None)];
        let by_name = names(&Sweep { run, steps: vec![9], ..Sweep::default() });
        assert_eq!(by_name, [0, 2, 3, 1].map(|i: usize| expected[i].clone()));
    }

    #[test]
    fn what_makes_no_sense_together_is_refused_by_flag() {
        let (int4, none) = (formats(&["int4"]), vec![Method::None]);
        let refused = |sweep: Sweep, message: &str| {
            let error = sweep.plan(Preset::Nano).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        };
        let base = Sweep::default;
        refused(Sweep { methods: none.clone(), weights: int4.clone(), ..base() }, "--weights: expected no format");
        refused(Sweep { methods: vec![Method::Ste(Ste)], ..base() }, "--method: expected none");
        refused(Sweep { activations: formats(&["int4"]), ..base() }, "--activations: expected --weights");
        refused(Sweep { no_full: true, ..base() }, "--no-full: expected --weights");
        refused(Sweep { lr: vec![0.1, -1.0], ..base() }, "--lr: expected a number above 0, found -1");
        refused(Sweep { steps: vec![0], ..base() }, "--steps: expected at least 1");
        let run = vec![Combination { method: Some(Method::None), weights: Some(int4[0]), ..Combination::default() }];
        refused(Sweep { run: run.clone(), ..base() }, "--weights: expected no format beside --method none");
        refused(
            Sweep { run: run.clone(), weights: int4.clone(), ..base() },
            "--weights: expected no list beside rows by name",
        );
        let cage: Optimizer = "cage".parse().unwrap();
        let (optimizers, ptq) = (vec![Optimizer::AdamW, cage], vec!["ptq".parse().unwrap()]);
        refused(Sweep { run, optimizers: optimizers.clone(), ..base() }, "--optimizers: expected no list beside rows");
        refused(Sweep { optimizers: optimizers.clone(), ..base() }, "--optimizers: expected adamw where no --methods");
        let sweep = Sweep { methods: ptq, weights: int4.clone(), optimizers: optimizers.clone(), ..base() };
        refused(sweep, "--optimizers: expected adamw where no --methods train with quantized operands, found cage");
        let methods = vec!["onebit".parse().unwrap()];
        let sweep = Sweep { methods, optimizers: optimizers.clone(), ..base() };
        refused(sweep, "--optimizers: expected adamw where the signs of --methods are no grid for the weights behind");
        let sweep = Sweep { weights: int4, optimizers, lr: vec![0.1], ..base() };
        refused(sweep, "--optimizer: expected lambda below 1 / --lr = 10");
        let run = vec![Combination { optimizer: Some(cage), ..Combination::default() }];
        refused(Sweep { run, ..base() }, "--optimizer: expected adamw beside --method none");
    }

    #[test]
    fn own_settings_go_over_others() {
        let file = Sweep { lr: vec![1.0], seeds: vec![1, 2], layers: Some(1), batch: Some(3), ..Sweep::default() };
        let flags = Sweep { lr: vec![2.0, 3.0], batch: Some(4), no_full: true, ..Sweep::default() };
        let expected = Sweep { lr: vec![2.0, 3.0], batch: Some(4), no_full: true, ..file.clone() };
        assert_eq!(flags.over(file), expected);
    }
}
