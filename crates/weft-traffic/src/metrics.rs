//! What configuration makes of Istio's metrics of the traffic of one HTTP connection manager or TCP
//! proxy: which are kept, and labels whose values are told of each request.

use std::sync::Arc;

use weft_cel::Program;
use weft_http::HeaderList;
use weft_telemetry::View;

use crate::access_log::keep;
use crate::format::{Subject, Wants, World};

/// Longest value of a label, in bytes.
const VALUE_BYTES_MAX: usize = 256;

/// Metrics that are not the standard ones.
#[derive(Debug)]
pub struct Metrics {
    pub view: Arc<View>,
    /// What [`View::set`] refers to.
    values: Vec<Program>,
    wants: Wants,
}

impl Metrics {
    pub(crate) fn new(view: View, values: Vec<Program>) -> Metrics {
        let mut wants = Wants::default();
        values.iter().for_each(|program| wants.of_program(program));
        Metrics { view: Arc::new(view), values, wants }
    }

    /// Some label's value depends on the request.
    pub fn has_values(&self) -> bool {
        !self.values.is_empty()
    }

    /// The values for a request or connection; empty text where an expression has none.
    pub fn values(&self, subject: Subject<'_>) -> Vec<Box<str>> {
        let world = World(subject);
        let value = |program: &Program| {
            let mut text = match program.evaluate(&world) {
                Ok(value) => value.to_text(),
                Err(weft_cel::NoValue) => String::new(),
            };
            let end = (0..=VALUE_BYTES_MAX.min(text.len())).rev();
            text.truncate(end.into_iter().find(|end| text.is_char_boundary(*end)).unwrap_or(0));
            text.into_boxed_str()
        };
        self.values.iter().map(value).collect()
    }

    /// What of a response head some value needs.
    pub fn keep_response(&self, headers: &HeaderList) -> HeaderList {
        keep(&self.wants.response, headers)
    }

    /// What of a response's trailers some value needs.
    pub fn keep_trailers(&self, trailers: &HeaderList) -> HeaderList {
        keep(&self.wants.trailers, trailers)
    }
}
