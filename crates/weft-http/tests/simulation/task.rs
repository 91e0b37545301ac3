//! The two ends of a stream, as a client and a server of any sort would act: in pieces, slowly,
//! giving up at times.

use std::collections::HashSet;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use weft_http::Frame;
use weft_http::h2::ErrorCode;
use weft_http::h2::conn::{Answer, Connection, StreamError, StreamKey};

use crate::plan::{Plan, Random};
use crate::world::Leave;

/// How a stream ended for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Complete,
    Cancelled,
    Reset,
    Refused,
    Lost,
}

/// One end of one stream.
#[derive(Debug)]
pub struct Task {
    pub plan: Plan,
    /// None while the client waits to open it.
    pub key: Option<StreamKey>,
    pub done: bool,
    runs: u32,
    informational: bool,
    head: bool,
    sent: usize,
    all_sent: bool,
    received: usize,
    trailers: bool,
    all_received: bool,
    /// Received and not released.
    owed: usize,
}

impl Task {
    /// A task at its beginning.
    pub fn new(plan: Plan, key: Option<StreamKey>) -> Task {
        Task {
            plan,
            key,
            done: false,
            runs: 0,
            informational: false,
            head: false,
            sent: 0,
            all_sent: false,
            received: 0,
            trailers: false,
            all_received: false,
            owed: 0,
        }
    }

    /// What stands in for a task while it runs.
    pub fn vacant() -> Task {
        Task { done: true, ..Task::new(Plan::of(0), None) }
    }
}

/// One run of a task.
pub struct Turn<'w> {
    pub connection: &'w mut Connection,
    pub random: &'w mut Random,
    pub waker: &'w Waker,
    pub left: Option<Leave>,
    /// Streams that the server has seen.
    pub seen: &'w HashSet<u64>,
}

/// What stopped a direction for now.
enum Stop {
    /// The engine will wake us.
    Waits,
    /// We do not feel like more.
    Lazy,
    Done,
    Failed(StreamError),
}

impl Turn<'_> {
    pub fn run_client(&mut self, task: &mut Task) -> Option<Ending> {
        task.runs += 1;
        let cancel = task.plan.cancel_at.is_some_and(|at| task.runs > at);
        let Some(key) = task.key else { return self.open(task, cancel) };
        if cancel {
            if self.random.one_in(2) {
                self.connection.reset(key, ErrorCode::CANCEL);
            }
            self.connection.close(key);
            return Some(Ending::Cancelled);
        }
        let mut lazy = matches!(self.send_content(task, key, false), Stop::Lazy);
        match self.read_answer(task, key) {
            Stop::Waits => {}
            Stop::Lazy => lazy = true,
            Stop::Failed(error) => {
                self.connection.close(key);
                return Some(self.judge(task, error));
            }
            Stop::Done => {
                assert!(task.all_sent || task.plan.early, "an answer to half a request");
                self.connection.close(key);
                return Some(Ending::Complete);
            }
        }
        if lazy {
            self.waker.wake_by_ref();
        }
        None
    }

    fn open(&mut self, task: &mut Task, cancel: bool) -> Option<Ending> {
        match self.connection.poll_reserve(&Context::from_waker(self.waker)) {
            // It gives up waiting without a word, as a dropped future does.
            Poll::Pending if cancel => return Some(Ending::Cancelled),
            Poll::Pending => return None,
            Poll::Ready(Err(error)) => return Some(self.judge(task, error)),
            Poll::Ready(Ok(())) if cancel => {
                self.connection.unreserve();
                return Some(Ending::Cancelled);
            }
            Poll::Ready(Ok(())) => {}
        }
        let end = task.plan.request_ends_with_head();
        let key = self.connection.open(&task.plan.request(), None, end).expect("just reserved");
        task.key = Some(key);
        task.all_sent = end;
        self.waker.wake_by_ref();
        None
    }

    /// Whether the failure is one that the plan or the end of the connection explains.
    fn judge(&self, task: &Task, error: StreamError) -> Ending {
        let id = task.plan.id;
        match (error, task.plan.reset_at) {
            (StreamError::Lost, _) if self.left == Some(Leave::Lost) => Ending::Lost,
            (StreamError::Reset(code), Some((_, planned))) if code == planned => Ending::Reset,
            (StreamError::Refused, Some((_, ErrorCode::REFUSED_STREAM)))
                if self.seen.contains(&id) =>
            {
                Ending::Reset
            }
            (StreamError::Refused, _) => {
                assert!(!self.seen.contains(&id), "stream {id} was refused and served");
                Ending::Refused
            }
            (error, _) => panic!("stream {id} failed: {error:?}, {:?}", task.plan),
        }
    }

    fn read_answer(&mut self, task: &mut Task, key: StreamKey) -> Stop {
        while !task.head {
            let cx = Context::from_waker(self.waker);
            match self.connection.poll_answer(key, &cx) {
                Poll::Pending => return Stop::Waits,
                Poll::Ready(Err(error)) => return Stop::Failed(error),
                Poll::Ready(Ok(Answer::Informational(head))) => {
                    assert!(task.plan.informational && !task.informational);
                    assert_eq!(head.status, 103);
                    task.informational = true;
                }
                Poll::Ready(Ok(Answer::Final { head, ended })) => {
                    assert_eq!(head, task.plan.response(), "somebody else's answer");
                    assert_eq!(task.informational, task.plan.informational);
                    assert!(!ended || task.plan.response_ends_with_head());
                    task.head = true;
                }
            }
        }
        self.read_content(task, key, true)
    }

    fn read_content(&mut self, task: &mut Task, key: StreamKey, response: bool) -> Stop {
        let plan = &task.plan;
        let (bytes, trailers) = match response {
            true => (plan.response_bytes, plan.response_trailers),
            false => (plan.request_bytes, plan.request_trailers),
        };
        if task.owed > 0 && self.random.one_in(2) {
            self.connection.release(key, std::mem::take(&mut task.owed));
        }
        loop {
            let cx = Context::from_waker(self.waker);
            match self.connection.poll_frame(key, &cx) {
                Poll::Pending if task.owed > 0 => return Stop::Lazy,
                Poll::Pending => return Stop::Waits,
                Poll::Ready(Some(Err(error))) => return Stop::Failed(error),
                Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                    assert!(!task.trailers);
                    assert_eq!(data, plan.content(response, task.received, data.len()));
                    task.received += data.len();
                    task.owed += data.len();
                    if self.random.one_in(2) {
                        self.connection.release(key, std::mem::take(&mut task.owed));
                    }
                }
                Poll::Ready(Some(Ok(Frame::Trailers(got)))) => {
                    assert_eq!(got, plan.trailers());
                    assert!(!task.trailers);
                    task.trailers = true;
                }
                Poll::Ready(None) => {
                    assert_eq!((task.received, task.trailers), (bytes, trailers), "{plan:?}");
                    task.all_received = true;
                    return Stop::Done;
                }
            }
            if self.random.one_in(4) {
                return Stop::Lazy;
            }
        }
    }

    fn send_content(&mut self, task: &mut Task, key: StreamKey, response: bool) -> Stop {
        let (bytes, trailers) = match response {
            true => (task.plan.response_bytes, task.plan.response_trailers),
            false => (task.plan.request_bytes, task.plan.request_trailers),
        };
        while !task.all_sent {
            let cx = Context::from_waker(self.waker);
            match self.connection.poll_ready(key, &cx) {
                Poll::Pending => return Stop::Waits,
                Poll::Ready(Err(error)) => return Stop::Failed(error),
                Poll::Ready(Ok(())) => {}
            }
            if task.sent < bytes {
                let len = (1 + self.random.below(30_000)).min(bytes - task.sent);
                let data = Bytes::from(task.plan.content(response, task.sent, len));
                self.connection.send(key, Frame::Data(data));
                task.sent += len;
            } else {
                match trailers {
                    true => self.connection.send(key, Frame::Trailers(task.plan.trailers())),
                    false => self.connection.end(key),
                }
                task.all_sent = true;
            }
            if self.random.one_in(3) {
                return Stop::Lazy;
            }
        }
        Stop::Done
    }

    pub fn run_server(&mut self, task: &mut Task) -> Option<Ending> {
        task.runs += 1;
        let key = task.key.expect("a request came on it");
        if let Some((at, code)) = task.plan.reset_at
            && task.runs > at
        {
            self.connection.reset(key, code);
            self.connection.close(key);
            return Some(Ending::Reset);
        }
        let mut lazy = false;
        if !task.all_received {
            match self.read_content(task, key, false) {
                Stop::Waits | Stop::Done => {}
                Stop::Lazy => lazy = true,
                Stop::Failed(error) => return Some(self.give_up(task, key, error)),
            }
        }
        if task.plan.early || task.all_received {
            match self.answer(task, key) {
                Stop::Waits => {}
                Stop::Lazy => lazy = true,
                Stop::Failed(error) => return Some(self.give_up(task, key, error)),
                // A reset that is still planned would come after the end.
                Stop::Done if task.all_received || self.random.one_in(2) => {
                    self.connection.close(key);
                    return Some(Ending::Complete);
                }
                Stop::Done => {}
            }
        }
        if lazy {
            self.waker.wake_by_ref();
        }
        None
    }

    fn answer(&mut self, task: &mut Task, key: StreamKey) -> Stop {
        if !task.head {
            if task.plan.informational {
                let head = weft_http::ResponseHead::new(103);
                self.connection.send_informational(key, &head);
            }
            let end = task.plan.response_ends_with_head();
            if let Err(error) = self.connection.send_head(key, &task.plan.response(), end) {
                return Stop::Failed(error);
            }
            task.head = true;
            task.all_sent = end;
        }
        self.send_content(task, key, true)
    }

    /// The client has gone: as planned, or because it has its answer.
    fn give_up(&mut self, task: &Task, key: StreamKey, error: StreamError) -> Ending {
        self.connection.close(key);
        match error {
            StreamError::Lost if self.left == Some(Leave::Lost) => Ending::Lost,
            StreamError::Reset(_) if task.plan.cancel_at.is_some() || task.plan.early => {
                Ending::Cancelled
            }
            error => panic!("stream {} failed: {error:?}, {:?}", task.plan.id, task.plan),
        }
    }
}
