//! Products of few rows with quantized matrices against float64.

mod common;
#[path = "common/packed_product.rs"]
mod packed_product;

use common::{every_tier, precisions};
use packed_product::{Problem, compare, epilogues, formats, hard};
use walsh::format::Format;
use walsh::kernel::matmul::Activation;
use walsh::kernel::packed_vector;
use walsh::{DType, Tier};

#[test]
fn every_format_agrees_with_float64() {
    for ctx in every_tier() {
        // A CPU adapter takes a tenth of a second for each shader: the tier that it is made for has them all.
        let all = !ctx.capabilities().is_cpu() || ctx.tier() == Tier::Subgroup;
        for (i, format) in formats().into_iter().enumerate() {
            let matrix = hard(format, 11, 200, i as u64);
            for m in [1, 3] {
                if all || i % 5 == m {
                    compare(&ctx, packed_vector::dispatch, &Problem::new(m, &matrix, DType::F32));
                }
            }
        }
    }
}

#[test]
fn ragged_sizes_agree_with_float64() {
    for ctx in every_tier() {
        let sizes = [
            (1, 1, 1),
            (1, 33, 31),
            (1, 7, 0),
            (1, 9, 4129),
            (2, 1, 65),
            (8, 5, 260),
            (5, 6, 33),
            (9, 17, 96),
            (64, 3, 40),
        ];
        for text in ["int4:g32", "mxfp4"] {
            let format: Format = text.parse().unwrap();
            for (m, n, k) in sizes {
                let matrix = hard(format, n, k, (m + n + k) as u64);
                compare(&ctx, packed_vector::dispatch, &Problem::new(m, &matrix, DType::F32));
            }
        }
    }
}

#[test]
fn f16_activations_are_exact_inputs_and_results_are_rounded() {
    for ctx in every_tier().into_iter().filter(|c| precisions(c).len() > 1) {
        for text in ["int4:g32", "nf4", "mxfp4", "int3"] {
            let matrix = hard(text.parse().unwrap(), 10, 160, 5);
            for (m, out) in [(1, DType::F32), (1, DType::F16), (4, DType::F16)] {
                compare(&ctx, packed_vector::dispatch, &Problem { out, ..Problem::new(m, &matrix, DType::F16) });
            }
            for m in [1, 4] {
                let out = DType::F16;
                compare(&ctx, packed_vector::dispatch, &Problem { out, ..Problem::new(m, &matrix, DType::F32) });
            }
        }
    }
}

#[test]
fn the_epilogue_follows_whole_sums() {
    for ctx in every_tier() {
        for k in [96, 0] {
            let matrix = hard("int4:g32".parse().unwrap(), 13, k, 3);
            for m in [1, 2] {
                epilogues(&ctx, packed_vector::dispatch, m, &matrix, DType::F32, &Activation::ALL);
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for ctx in every_tier() {
        packed_product::refusals(&ctx, packed_vector::dispatch);
    }
}
