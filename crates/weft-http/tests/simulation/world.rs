//! One connection: both engines, the links between them, and a task for each end of each stream.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};

use bytes::{Buf, BytesMut};
use weft_http::h2::conn::{Budgets, Config, Connection, Incoming, Role, StreamKey};
use weft_http::h2::hpack::HeadLimits;

use crate::link::Link;
use crate::plan::{Plan, Random};
use crate::task::{Ending, Task, Turn};

/// How streams ended, as their client saw it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub connections: u64,
    pub streams: u64,
    pub complete: u64,
    pub cancelled: u64,
    pub reset: u64,
    pub refused: u64,
    pub lost: u64,
    pub bytes: u64,
}

impl Totals {
    fn count(&mut self, ending: Ending, bytes: usize) {
        self.streams += 1;
        match ending {
            Ending::Complete => {
                self.complete += 1;
                self.bytes += bytes as u64;
            }
            Ending::Cancelled => self.cancelled += 1,
            Ending::Reset => self.reset += 1,
            Ending::Refused => self.refused += 1,
            Ending::Lost => self.lost += 1,
        }
    }

    fn add(&mut self, other: &Totals) {
        self.connections += other.connections;
        self.streams += other.streams;
        self.complete += other.complete;
        self.cancelled += other.cancelled;
        self.reset += other.reset;
        self.refused += other.refused;
        self.lost += other.lost;
        self.bytes += other.bytes;
    }
}

/// Tasks and owners that were woken, in order.
type Queue = Arc<Mutex<VecDeque<Who>>>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Owner(Role),
    Task(Role, usize),
}

/// Wakes once.
struct Alarm {
    who: Who,
    queue: Queue,
    rung: AtomicBool,
}

impl Alarm {
    fn waker(who: Who, queue: &Queue) -> Waker {
        Arc::new(Alarm { who, queue: queue.clone(), rung: AtomicBool::new(false) }).into()
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.rung.swap(true, Ordering::Relaxed) {
            self.queue.lock().unwrap().push_back(self.who);
        }
    }
}

/// One end of a connection.
struct End {
    connection: Connection,
    /// Received and not yet a whole frame.
    input: BytesMut,
    incoming: Link,
    /// There may be output to write.
    woken: bool,
    tasks: Vec<Task>,
}

pub struct World {
    random: Random,
    queue: Queue,
    client: End,
    server: End,
    /// Streams the client will start, and has not.
    to_start: usize,
    concurrent: usize,
    active: usize,
    first_id: u64,
    /// Streams the server has seen.
    seen: HashSet<u64>,
    /// The connection ends when so many streams are left to start.
    leave_at: usize,
    left: Option<Leave>,
    steps: u64,
    totals: Totals,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    Client,
    Server,
    Lost,
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut random = Random::new(seed);
        let queue = Queue::default();
        let (ours, theirs) = (config(&mut random), config(&mut random));
        let to_server = Link::new(Role::Client, &ours);
        let to_client = Link::new(Role::Server, &theirs);
        let end = |role: Role, config: Config, incoming: Link| {
            let mut connection = Connection::new(role, config);
            connection.set_owner(&Alarm::waker(Who::Owner(role), &queue));
            let input = BytesMut::new();
            End { connection, input, incoming, woken: true, tasks: Vec::new() }
        };
        let to_start = match random.below(10) {
            0 => 1 + random.below(5),
            1 => 2_000 + random.below(2_000),
            _ => 100 + random.below(900),
        };
        World {
            client: end(Role::Client, ours, to_client),
            server: end(Role::Server, theirs, to_server),
            queue: queue.clone(),
            concurrent: 1 + random.below(150),
            active: 0,
            first_id: seed & 0xffff_ffff_ffff,
            seen: HashSet::new(),
            leave_at: if random.one_in(2) { random.below(to_start) } else { 0 },
            left: None,
            to_start,
            steps: 0,
            random,
            totals: Totals::default(),
        }
    }

    pub fn run(mut self, totals: &mut Totals) {
        let mut all = self.to_start;
        loop {
            while self.to_start > 0 && self.active < self.concurrent {
                self.to_start -= 1;
                self.active += 1;
                let plan = Plan::of(self.first_id.wrapping_add(self.to_start as u64));
                self.add_task(Role::Client, plan, None);
            }
            if self.to_start < self.leave_at && self.left.is_none() {
                self.leave();
                let more = self.to_start.min(20);
                all -= self.to_start - more;
                self.to_start = more;
            }
            if !self.step() {
                break;
            }
        }
        self.check_end();
        assert_eq!(self.totals.streams, all as u64, "every stream ends once");
        self.totals.connections = 1;
        totals.add(&self.totals);
    }

    fn check_end(&self) {
        for (role, end) in [(Role::Client, &self.client), (Role::Server, &self.server)] {
            let waiting: Vec<_> = end.tasks.iter().filter(|task| !task.done).collect();
            assert!(waiting.is_empty(), "nobody wakes at the {role:?}: {waiting:#?}");
            assert_eq!(end.connection.open_streams(), 0, "streams left over at the {role:?}");
            match self.left {
                Some(Leave::Lost) => {}
                _ => assert_eq!(end.connection.failure(), None, "{role:?}"),
            }
        }
        match self.left {
            Some(Leave::Client) => assert!(self.client.connection.is_drained()),
            Some(Leave::Server) => assert!(self.server.connection.is_drained()),
            Some(Leave::Lost) | None => {}
        }
    }

    /// Does one thing of those that can be done; false when there is none.
    fn step(&mut self) -> bool {
        self.steps += 1;
        if self.steps.is_multiple_of(500) {
            self.client.connection.refill();
            self.server.connection.refill();
        }
        let choice = self.random.below(6);
        (0..6).any(|turn| match (choice + turn) % 6 {
            0 => self.deliver(Role::Server),
            1 => self.deliver(Role::Client),
            2 => self.write(Role::Server),
            3 => self.write(Role::Client),
            _ => self.run_woken(),
        })
    }

    fn end(&mut self, role: Role) -> &mut End {
        match role {
            Role::Client => &mut self.client,
            Role::Server => &mut self.server,
        }
    }

    /// Bytes arrive at one end.
    fn deliver(&mut self, to: Role) -> bool {
        let end = match to {
            Role::Client => &mut self.client,
            Role::Server => &mut self.server,
        };
        if end.incoming.is_empty() {
            return false;
        }
        end.input.extend_from_slice(&end.incoming.take(&mut self.random));
        let result = end.connection.recv(&mut end.input);
        assert!(result.is_ok() || self.left == Some(Leave::Lost), "{to:?}: {result:?}");
        while let Some(incoming) = self.server.connection.next_request() {
            self.accept(incoming);
        }
        true
    }

    /// One end writes, as much as the transport has room for.
    fn write(&mut self, from: Role) -> bool {
        let (end, other) = match from {
            Role::Client => (&mut self.client, &mut self.server),
            Role::Server => (&mut self.server, &mut self.client),
        };
        let room = other.incoming.room();
        if !end.woken || room == 0 {
            return false;
        }
        let out = end.connection.output();
        if out.is_empty() {
            end.woken = false;
            return true;
        }
        let len = out.len().min(room).min(1 + self.random.below(100_000));
        let mut bytes = vec![0; len];
        out.copy_to_slice(&mut bytes);
        other.incoming.put(&bytes, &mut end.incoming, &mut self.random);
        true
    }

    fn run_woken(&mut self) -> bool {
        let next = self.queue.lock().unwrap().pop_front();
        match next {
            None => return false,
            Some(Who::Owner(role)) => {
                // Whatever was said to the owner before is done with: it may be woken again.
                let alarm = Alarm::waker(Who::Owner(role), &self.queue);
                let end = self.end(role);
                end.woken = true;
                end.connection.set_owner(&alarm);
            }
            Some(Who::Task(role, index)) => self.run_task(role, index),
        }
        true
    }

    fn run_task(&mut self, role: Role, index: usize) {
        let end = match role {
            Role::Client => &mut self.client,
            Role::Server => &mut self.server,
        };
        let mut task = std::mem::replace(&mut end.tasks[index], Task::vacant());
        if task.done {
            end.tasks[index] = task;
            return;
        }
        let alarm = Alarm::waker(Who::Task(role, index), &self.queue);
        let mut turn = Turn {
            connection: &mut end.connection,
            random: &mut self.random,
            waker: &alarm,
            left: self.left,
            seen: &self.seen,
        };
        let ended = match role {
            Role::Client => turn.run_client(&mut task),
            Role::Server => turn.run_server(&mut task),
        };
        match ended {
            None => {}
            Some(ending) => {
                task.done = true;
                if role == Role::Client {
                    self.active -= 1;
                    self.totals.count(ending, task.plan.response_bytes);
                }
            }
        }
        self.end(role).tasks[index] = task;
    }

    fn accept(&mut self, incoming: Incoming) {
        let head = incoming.head.expect("the client sends sound heads");
        let id = std::str::from_utf8(&head.path()[1..]).unwrap().parse().unwrap();
        let plan = Plan::of(id);
        assert!(self.seen.insert(id), "stream {id} came twice");
        assert_eq!(head, plan.request());
        assert_eq!(incoming.ended, plan.request_ends_with_head());
        self.add_task(Role::Server, plan, Some(incoming.key));
    }

    fn add_task(&mut self, role: Role, plan: Plan, key: Option<StreamKey>) {
        let end = self.end(role);
        let task = Task::new(plan, key);
        let index = end.tasks.iter().position(|task| task.done).unwrap_or(end.tasks.len());
        match end.tasks.get_mut(index) {
            Some(place) => *place = task,
            None => end.tasks.push(task),
        }
        Alarm::waker(Who::Task(role, index), &self.queue).wake();
    }

    fn leave(&mut self) {
        let how = [Leave::Client, Leave::Server, Leave::Lost][self.random.below(3)];
        self.left = Some(how);
        match how {
            Leave::Client => self.client.connection.shutdown(),
            Leave::Server => self.server.connection.shutdown(),
            Leave::Lost => {
                self.client.connection.lost();
                self.server.connection.lost();
            }
        }
    }
}

fn config(random: &mut Random) -> Config {
    Config {
        streams_max: 1 + random.below(120) as u32,
        stream_window_bytes: match random.below(4) {
            0 => 20 + random.below(200) as u32,
            1 => 65_535,
            _ => 1_000 + random.below(200_000) as u32,
        },
        connection_window_bytes: 65_535 + random.below(200_000) as u32,
        head: HeadLimits::DEFAULT,
        connect_protocol: random.one_in(2),
        budgets: Budgets::default(),
    }
}
