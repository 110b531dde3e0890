//! The AdamW update with CAGE's pull toward the grid, and the strength of that pull over the steps.

/// Constants of an update.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the moments.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay; 0 for parameters that are not decayed.
    pub weight_decay: f64,
}

/// What parameters are pulled toward.
#[derive(Clone, Copy, Debug)]
pub struct Pull<'a> {
    /// Q(x), of the parameters before the update.
    pub targets: &'a [f64],
    /// The step's [`lambda`].
    pub lambda: f64,
    /// Whether it joins the gradient.
    pub coupled: bool,
}

/// Update number `t`, from 1, of parameters `x` whose gradients, clipped, are `grads`.
pub fn adamw(x: &mut [f64], [m, v]: &mut [Vec<f64>; 2], grads: &[f64], t: i32, update: Update, pull: Option<Pull<'_>>) {
    let Update { lr, betas: (b1, b2), eps, weight_decay } = update;
    for i in 0..x.len() {
        let error = pull.map_or(0.0, |pull| pull.lambda * (x[i] - pull.targets[i]));
        let coupled = pull.is_some_and(|pull| pull.coupled);
        let g = grads[i] + if coupled { error } else { 0.0 };
        m[i] = b1 * m[i] + (1.0 - b1) * g;
        v[i] = b2 * v[i] + (1.0 - b2) * g * g;
        let (m_hat, v_hat) = (m[i] / (1.0 - b1.powi(t)), v[i] / (1.0 - b2.powi(t)));
        x[i] *= 1.0 - lr * weight_decay;
        x[i] -= lr * (m_hat / (v_hat.sqrt() + eps) + if coupled { 0.0 } else { error });
    }
}

/// CAGE's strength in step `t` of `steps`, from 0: none for `r = (t + 1) / steps` up to `silence`, then in a straight line up to `lambda` at 1, or
/// at once.
#[must_use]
pub fn lambda(t: u32, steps: u32, lambda: f64, silence: f64, constant: bool) -> f64 {
    let r = f64::from(t + 1) / f64::from(steps);
    match () {
        () if r <= silence => 0.0,
        () if constant || r >= 1.0 => lambda,
        () => lambda * (r - silence) / (1.0 - silence),
    }
}
