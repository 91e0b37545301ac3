//! Test support: scripted peers, real-peer launcher, goldens. Never shipped.
