//! Training: corpus, data, schedule, checkpoints.

pub mod corpus;
