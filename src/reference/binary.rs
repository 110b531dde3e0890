//! Broadcasting.

/// Row-major index into a tensor of `shape` for the element with index `at` of a tensor of `target`.
pub fn broadcast_index(mut at: usize, target: &[usize], shape: &[usize]) -> usize {
    let lead = target.len() - shape.len();
    let (mut index, mut stride) = (0, 1);
    for i in (0..target.len()).rev() {
        let here = at % target[i];
        at /= target[i];
        if i >= lead {
            index += stride * if shape[i - lead] == 1 { 0 } else { here };
            stride *= shape[i - lead];
        }
    }
    index
}

/// Sums `x` of `x_shape` to `shape`.
pub fn sum_to(x: &[f64], x_shape: &[usize], shape: &[usize]) -> Vec<f64> {
    let mut out = vec![0.0; shape.iter().product()];
    for (i, v) in x.iter().enumerate() {
        out[broadcast_index(i, x_shape, shape)] += v;
    }
    out
}
