//! Chains of multiply-adds, and a sum of small matrix products.

/// The sum of `chains` values that start as `x[i] + j` and become `factor v + addend` `steps` times.
#[must_use]
pub fn multiply_peak(x: &[f64], chains: usize, steps: usize, [factor, addend]: [f64; 2]) -> Vec<f64> {
    let end = |start: f64| (0..steps).fold(start, |v, _| factor * v + addend);
    x.iter().map(|x| (0..chains).map(|j| end(x + j as f64)).sum()).collect()
}

/// `steps` times the sum of all products of a 16 x 16 matrix of `a` with one of `b`: 256 elements.
#[must_use]
pub fn multiply_peak_coop(a: &[f64], b: &[f64], steps: usize) -> Vec<f64> {
    let mut out = vec![0.0; 256];
    for a in a.chunks_exact(256) {
        for b in b.chunks_exact(256) {
            for (at, out) in out.iter_mut().enumerate() {
                let (row, column) = (at / 16, at % 16);
                *out += (0..16).map(|k| a[row * 16 + k] * b[k * 16 + column]).sum::<f64>() * steps as f64;
            }
        }
    }
    out
}
