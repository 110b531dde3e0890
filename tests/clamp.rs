//! Weights kept within bounds: exact, idempotent, and only those that a model marks.

mod common;

use common::{Gen, every_tier, floats, wide};
use walsh::kernel::clamp::clamp;
use walsh::optim::{AdamW, AdamWOptions, Init, ParameterBuilder, Schedule};
use walsh::reference::clamp::clamp as reference;
use walsh::{DType, Error, Tensor};

#[test]
fn what_is_beyond_goes_to_the_nearer_end() {
    for context in every_tier() {
        for len in [4, 128, 1024, 1028, 4100] {
            for (limit, halves) in
                common::precisions(&context).iter().map(|half| (if *half { 1.0 } else { 0.75 }, *half))
            {
                let mut data: Vec<f32> = Gen::new(len as u64).hard(len);
                data[..4].copy_from_slice(&[f32::INFINITY, f32::NEG_INFINITY, limit, -0.0]);
                let x = Tensor::from_f32(&context, &data, &[len]).unwrap();
                let (h, rounded) = floats(&context, &data, &[len], if halves { DType::F16 } else { DType::F32 });
                let want = reference(&wide(&data), f64::from(limit));
                // The copy of what stays is left alone; the ends are f16 numbers.
                let want_h: Vec<f64> =
                    (0..len).map(|i| if want[i] == f64::from(data[i]) { rounded[i] } else { want[i] }).collect();
                for _ in 0..2 {
                    clamp(&context, x.buffer(), halves.then(|| h.buffer()), limit).unwrap();
                    assert_eq!(wide(&x.to_vec().unwrap()), want);
                    if halves {
                        assert_eq!(wide(&h.to_vec().unwrap()), want_h);
                    }
                }
            }
        }
        let nan = Tensor::from_f32(&context, &[f32::NAN, 2.0, -f32::NAN, -2.0], &[4]).unwrap();
        clamp(&context, nan.buffer(), None, 1.0).unwrap();
        let got = nan.to_vec().unwrap();
        assert!(got[0].is_nan() && got[1] == 1.0 && got[2].is_nan() && got[3] == -1.0, "{got:?}");
        for (buffer, limit) in [(nan.buffer().clone(), 0.0), (nan.buffer().clone(), f32::NAN)] {
            assert!(matches!(clamp(&context, &buffer, None, limit), Err(Error::Invalid { .. })));
        }
    }
}

#[test]
fn the_optimizer_keeps_marked_parameters_in_bounds_and_no_others() {
    for context in every_tier() {
        for half in common::precisions(&context) {
            let mut builder = ParameterBuilder::new();
            let free = builder.add("free", &[3, 5], Init::Values(vec![0.9; 15]));
            let vector = builder.add("vector", &[7], Init::Values(vec![-0.9; 7]));
            let marked = builder.add("marked", &[2, 3], Init::Values(vec![0.9; 6]));
            builder.keep_within_one(marked);
            let parameters = builder.build(&context, 1, *half).unwrap();
            let schedule = Schedule::constant(0.25);
            let options = AdamWOptions { schedule, weight_decay: 0.0, ..Default::default() };
            let mut optimizer = AdamW::new(&parameters, options).unwrap();
            for _ in 0..3 {
                let sum = |i: usize, sign: f32| {
                    let ones =
                        Tensor::from_f32(&context, &vec![sign; parameters[i].len()], parameters[i].shape()).unwrap();
                    parameters[i].mul(&ones).unwrap().sum().unwrap()
                };
                let loss = sum(free, -1.0).add(&sum(vector, 1.0)).unwrap().add(&sum(marked, -1.0)).unwrap();
                loss.backward().unwrap();
                optimizer.step(&parameters).unwrap();
            }
            // Adam's first steps under a constant gradient are as long as the rate.
            let near = |i: usize, want: f32| {
                let values = parameters[i].to_vec().unwrap();
                assert!(values.iter().all(|v| (v - want).abs() < 1e-4), "{i}: {values:?}, want {want}");
            };
            near(free, 1.65);
            near(vector, -1.65);
            assert_eq!(parameters[marked].to_vec().unwrap(), [1.0; 6]);
        }
    }
}
