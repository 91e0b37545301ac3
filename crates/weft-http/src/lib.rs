//! Version-neutral HTTP message that keeps header order, case and duplicates; the HTTP/1 codec; framing and hop-by-hop rules.
