//! Training: corpus, data, schedule, checkpoints.
