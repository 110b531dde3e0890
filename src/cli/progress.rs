//! How far training is: a bar on a terminal, a line now and then elsewhere.

use super::say;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};
use walsh::train::Status;

/// Time between lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// A bar, or lines.
pub struct Bar {
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl Bar {
    /// Of that many steps, some of them done.
    pub fn new(steps: u64, done: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr_with_hz(10));
            let template = "{bar:32} {pos}/{len}  {msg}  {eta} left";
            // The template is constant; with a bad one the default bar would do.
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_position(done);
            bar.reset_eta();
            bar
        });
        Self { bar, last_line: Instant::now() }
    }

    /// Writes a line above the bar.
    pub fn line(&mut self, line: &str) {
        self.last_line = Instant::now();
        match &self.bar {
            Some(bar) => bar.suspend(|| say(line)),
            None => say(line),
        }
    }

    /// So many steps are done. Where there is no bar, `line` is written when it is due, or when `now` says so.
    pub fn update(&mut self, done: u64, message: String, now: bool, line: impl FnOnce(&str) -> String) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(message);
        } else if now || self.last_line.elapsed() >= LINE_EVERY {
            self.line(&line(&message));
        }
    }

    /// Leaves the bar as it is.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

/// Loss and speed.
pub fn message(status: &Status) -> String {
    let loss = status.train_loss.map_or("-".to_owned(), |l| format!("{l:.4}"));
    let rate = status.tokens_per_s.map_or("-".to_owned(), |r| format!("{r:.0}"));
    format!("loss {loss}  {rate} tokens/s")
}
