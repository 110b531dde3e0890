//! Products of up to 64 rows with quantized matrices by cooperative matrices against float64.

mod common;
#[path = "common/packed_product.rs"]
mod packed_product;

use common::every_tier;
use packed_product::{Problem, compare, epilogues, formats, hard};
use walsh::format::PackedMatrix;
use walsh::kernel::matmul::{Activation, Epilogue, Form};
use walsh::kernel::packed::Packed;
use walsh::kernel::packed_matmul::{Operand, PackedMatmul};
use walsh::kernel::packed_skinny;
use walsh::{Context, DType, Error, Tensor, Tier};

fn coop() -> Vec<Context> {
    every_tier().into_iter().filter(|c| c.tier() == Tier::Coop).collect()
}

fn problem(m: usize, matrix: &PackedMatrix) -> Problem<'_> {
    Problem { half: true, ..Problem::new(m, matrix, DType::F16) }
}

#[test]
fn every_format_agrees_with_float64() {
    for ctx in coop() {
        for (i, format) in formats().into_iter().enumerate() {
            let matrix = hard(format, 35, 640, i as u64);
            for m in [2, 16] {
                compare(&ctx, packed_skinny::dispatch, &problem(m, &matrix));
            }
        }
    }
}

#[test]
fn ragged_sizes_agree_with_float64() {
    for ctx in coop() {
        for text in ["int4:g32", "int8:row:f32", "mxfp4", "nf3"] {
            for (m, n, k) in
                [(1, 1, 1), (9, 33, 31), (16, 32, 0), (17, 31, 4129), (64, 65, 260), (33, 5, 1056), (48, 17, 96)]
            {
                let matrix = hard(text.parse().unwrap(), n, k, (m + n + k) as u64);
                compare(&ctx, packed_skinny::dispatch, &problem(m, &matrix));
                compare(&ctx, packed_skinny::dispatch, &Problem { out: DType::F16, ..problem(m, &matrix) });
            }
        }
    }
}

#[test]
fn the_epilogue_follows_whole_sums() {
    for ctx in coop() {
        for (m, k) in [(9, 96), (40, 96), (9, 0)] {
            let matrix = hard("int4:g32".parse().unwrap(), 45, k, 3);
            epilogues(&ctx, packed_skinny::dispatch, m, &matrix, DType::F16, &Activation::ALL);
        }
    }
}

#[test]
fn f32_activations_are_refused_on_every_tier() {
    for ctx in every_tier() {
        let packed = Packed::from_host(&ctx, &hard("int4:g32".parse().unwrap(), 3, 32, 3)).unwrap();
        let [a, out] = [4 * 32, 4 * 3].map(|len| Tensor::zeros(&ctx, &[len], DType::F32).unwrap());
        let spec = PackedMatmul {
            form: Form::Nt,
            m: 4,
            n: 3,
            k: 32,
            a: Operand::Dense(a.buffer()),
            b: &packed,
            out: out.buffer(),
            alpha: 1.0,
            bias: None,
            epilogue: Epilogue::None,
            mask: None,
            accumulate: false,
        };
        assert!(packed_skinny::supports(&ctx, &spec).is_err());
        assert!(matches!(packed_skinny::dispatch(&ctx, &spec), Err(Error::Unsupported { .. })));
    }
}
