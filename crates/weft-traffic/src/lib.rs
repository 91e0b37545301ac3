//! xDS lowered to compiled tables; route match, balancing, retries. Pure: clock and randomness are arguments.
