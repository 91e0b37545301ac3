//! Snapshot and proxy view in, xDS resources and diagnostics out. Pure.
