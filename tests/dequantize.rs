//! All codes of every format, on every tier.

mod common;

use common::{U32, every_tier};
use walsh::format::{Format, Grid, Layout, PackedMatrix, Rounding, Store};
use walsh::kernel::dequantize::dequantize;
use walsh::kernel::packed::Packed;
use walsh::{DType, Tensor};

/// Every code in every place of a unit, with scales that differ by group: rows of all codes, shifted by the row's number.
fn all_codes(format: Format) -> PackedMatrix {
    let count = 1usize << format.bits();
    let cols = count.max(61) + 5;
    let rows = 33;
    let x: Vec<f32> =
        (0..rows * cols).map(|i| ((i * 7919 % 1009) as f32 - 504.0) * 0.01 * (1 + i / cols) as f32).collect();
    let mut matrix = PackedMatrix::quantize(format, &x, rows, cols, Rounding::Nearest).unwrap();
    for row in 0..rows {
        for col in 0..cols {
            matrix.set_code(row, col, ((row + col) % count) as u32);
        }
    }
    matrix
}

#[test]
fn every_code_decodes_to_its_value() {
    for context in every_tier() {
        for format in Format::all() {
            let matrix = all_codes(format);
            let Layout { rows, cols, .. } = *matrix.layout();
            let packed = Packed::from_host(&context, &matrix).unwrap();
            assert_eq!(packed.to_host(&context).unwrap(), matrix, "{format}: a copy to the device and back");
            let out = Tensor::from_f32(&context, &vec![-12345.0; rows * cols], &[rows, cols]).unwrap();
            dequantize(&context, &packed, out.buffer()).unwrap();
            // Exact levels times exact scales: one rounding; double quantization has one in the scale, of terms that may cancel.
            let exact = matches!(format.store(), Store::E8M0(_))
                || matches!(format.grid(), Grid::Int { .. }) && format.bits() == 2;
            let values = out.to_vec().unwrap();
            if context.capabilities().f16 {
                // The same values, rounded once more; below 2^-14 to a multiple of 2^-24, or to zero where subnormals are cut off.
                let half = Tensor::zeros(&context, &[rows, cols], DType::F16).unwrap();
                dequantize(&context, &packed, half.buffer()).unwrap();
                for (i, (got, want)) in half.to_vec().unwrap().into_iter().zip(&values).enumerate() {
                    let magnitude = want.abs();
                    let slack =
                        if magnitude < 2f32.powi(-14) { magnitude + 2f32.powi(-25) } else { magnitude / 2048.0 };
                    let fits = match magnitude {
                        m if m.is_nan() => got.is_nan(),
                        65504.0.. => got.abs() >= 65504.0 && got.signum() == want.signum(),
                        _ => (got - want).abs() <= slack,
                    };
                    assert!(fits, "{format}: element {i} is {got} in f16, {want} in f32");
                }
            }
            for (i, (got, want)) in values.into_iter().zip(matrix.dequantize()).enumerate() {
                let slack = match format.store() {
                    Store::Double => {
                        4.0 * U32 * (want.abs() + f64::from(matrix.header(walsh::format::Header::Offset)).abs())
                    }
                    // The product with the tensor's factor is rounded, then that with the level.
                    Store::E4M3 => 2.0 * U32 * want.abs(),
                    _ if exact => 0.0,
                    _ => U32 * want.abs(),
                };
                let got = f64::from(got);
                assert!(
                    (got - want).abs() <= slack || got == want || got.is_nan() && want.is_nan(),
                    "{format} on {}: element {i}, code {}: got {got}, want {want}",
                    context.capabilities().adapter.name,
                    matrix.code(i / cols, i % cols),
                );
            }
        }
    }
}

#[test]
fn scales_of_every_byte_decode_to_the_bit() {
    let format: Format = "mxfp4".parse().unwrap();
    for context in every_tier() {
        let (rows, cols) = (256, 16);
        let mut matrix = PackedMatrix::zeros(format, rows, cols).unwrap();
        for row in 0..rows {
            matrix.set_scale_bits(row, 0, row as u32);
            (0..cols).for_each(|col| matrix.set_code(row, col, col as u32));
        }
        let packed = Packed::from_host(&context, &matrix).unwrap();
        let out = Tensor::zeros(&context, &[rows, cols], DType::F32).unwrap();
        dequantize(&context, &packed, out.buffer()).unwrap();
        for (i, (got, want)) in out.to_vec().unwrap().into_iter().zip(matrix.dequantize()).enumerate() {
            // f32 has no 6 * 2^127.
            let want = want as f32;
            assert!(
                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                "byte {}: got {got:e}, want {want:e}",
                i / cols
            );
        }
    }
}
