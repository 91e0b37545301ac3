//! Metric registry with budgets, access-log formats, trace context. Pure: bytes out, no I/O.
