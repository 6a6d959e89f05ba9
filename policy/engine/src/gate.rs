//! The agent's gate: every request goes through it, and comes out as a proof or not at all.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nacre_protocol::agent::{GetDiagnosticDataRequest, WriteStreamRequest};
use nacre_protocol::ports::PortWriteRequest;
use nacre_trust::{Attests, Untrusted, Verified};
use regorus::Value;

use crate::denial::Denial;
use crate::input::AgentRequest;
use crate::judge::{Event, Judge, Ticket};
use crate::policy::{Policy, PolicyError};
use crate::record::Record;

/// What is said while there is no policy.
const UNBOUND: &str = "this guest has no policy: annotate the pod with what `nacre policy generate` \
                       writes, or configure pod.default_initdata for the runtime";

/// Witness that the pod's policy allowed a request. It is made by [`Gate::judge`] only, for the one
/// request that it comes with.
///
/// The request's effect on the policy's state is undone when this is dropped before
/// [`PolicyAllowed::settle`] heard of a success.
#[derive(Debug)]
pub struct PolicyAllowed {
    gate: Arc<Gate>,
    pending: Mutex<Option<(Ticket, Option<Record>)>>,
}

impl<R: AgentRequest> Attests<R> for PolicyAllowed {}

impl PolicyAllowed {
    /// Tells the policy how the request ended, and returns that.
    ///
    /// # Errors
    /// The given one.
    pub fn settle<T, E: std::fmt::Display>(&self, result: Result<T, E>) -> Result<T, E> {
        self.close(result.as_ref().map(drop).map_err(ToString::to_string));
        result
    }

    fn close(&self, result: Result<(), String>) {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((ticket, record)) = pending else { return };
        let mut inner = self.gate.lock();
        if let Bound::To(judge) = &mut inner.bound {
            judge.settle(ticket, result.is_ok());
        }
        if let Some(record) = record {
            inner.recorder.push(&record.ended(result));
        }
    }
}

impl Drop for PolicyAllowed {
    fn drop(&mut self) {
        self.close(Err("the request was given up".into()));
    }
}

/// A request that the policy denied, with the reasons. The request cannot be taken out.
#[derive(Debug)]
pub struct Denied<R> {
    request: R,
    denial: Denial,
}

impl<R> Denied<R> {
    /// The reasons.
    pub const fn denial(&self) -> &Denial {
        &self.denial
    }

    /// The request, to look at.
    pub const fn request(&self) -> &R {
        &self.request
    }
}

/// Why [`Gate::set_policy`] did not take a policy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetPolicyError {
    /// The pod's policy is fixed.
    #[error("the pod's policy is frozen: it came with the pod's initdata, or was set before")]
    Frozen,
    /// The kernel command line does not permit to set one.
    #[error(
        "this guest takes its policy from initdata only (the kernel parameter \
         nacre.danger_set_policy=1 would permit to set one)"
    )]
    NotConfigured,
    /// The document cannot be used.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// Judges every request of one pod. Without a policy it denies them all.
#[derive(Debug)]
pub struct Gate {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    bound: Bound,
    recorder: Recorder,
}

#[derive(Debug)]
enum Bound {
    /// No policy, and none but initdata may bring one.
    Never,
    /// No policy yet; the command line permits the host to set one.
    NotYet,
    To(Box<Judge>),
}

/// Requests as they came, for development.
#[derive(Debug, Default)]
struct Recorder {
    on: bool,
    lines: Vec<String>,
    bytes: usize,
}

/// Most bytes that are kept of recorded requests until somebody takes them.
const MOST_RECORDED: usize = 32 << 20;
/// Most bytes of recorded requests that are taken at once.
const RECORDS_AT_ONCE: usize = 1 << 20;

impl Recorder {
    /// Taking the records is not recorded: that would never end.
    fn wants(&self, request: &str) -> bool {
        self.on && request != GetDiagnosticDataRequest::NAME
    }

    /// What does not fit is lost.
    fn push(&mut self, record: &Record) {
        let line = record.line();
        if self.bytes + line.len() <= MOST_RECORDED {
            self.bytes += line.len();
            self.lines.push(line);
        }
    }

    fn take(&mut self) -> String {
        let mut taken = String::new();
        let mut count = 0;
        for line in &self.lines {
            if count > 0 && taken.len() + line.len() > RECORDS_AT_ONCE {
                break;
            }
            taken.push_str(line);
            count += 1;
        }
        self.lines.drain(..count);
        self.bytes -= taken.len();
        taken
    }
}

impl Gate {
    /// A gate that denies everything, for good.
    #[must_use]
    pub fn without_policy() -> Arc<Self> {
        Self::new(Bound::Never)
    }

    /// A gate that denies everything until [`Gate::set_policy`] was called once.
    #[must_use]
    pub fn danger_awaiting_policy() -> Arc<Self> {
        Self::new(Bound::NotYet)
    }

    /// A gate with the pod's policy, which is fixed from now on.
    #[must_use]
    pub fn bound_to(policy: Policy) -> Arc<Self> {
        Self::new(Bound::To(Box::new(Judge::new(policy))))
    }

    fn new(bound: Bound) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::new(Inner { bound, recorder: Recorder::default() }) })
    }

    /// Keeps every request from now on, until [`Gate::take_records`].
    pub fn danger_record(&self) {
        self.lock().recorder.on = true;
    }

    /// Takes recorded requests, about 1 MiB of lines at a time; empty when there are no more.
    pub fn take_records(&self) -> String {
        self.lock().recorder.take()
    }

    /// Decides on a request of the host.
    ///
    /// # Errors
    /// [`Denied`] holds the reasons.
    pub fn judge<R: AgentRequest>(
        self: &Arc<Self>,
        request: R,
    ) -> Result<Verified<R, PolicyAllowed>, Box<Denied<R>>> {
        let mut inner = self.lock();
        let with_stream = match &inner.bound {
            Bound::To(judge) => judge.policy().reads_requests_itself(),
            Bound::Never | Bound::NotYet => false,
        };
        let input = input_of(&request, with_stream);
        let record = inner.recorder.wants(R::NAME).then(|| Record::new(R::NAME, &input));
        let judged = match &mut inner.bound {
            Bound::To(judge) => judge.judge(R::NAME, &input),
            Bound::Never | Bound::NotYet => Err(Denial::because(R::NAME, None, UNBOUND)),
        };
        match judged {
            Ok(ticket) => {
                let pending = Mutex::new(Some((ticket, record)));
                let witness = PolicyAllowed { gate: Arc::clone(self), pending };
                Ok(Verified::attested(Untrusted::new(request), witness))
            }
            Err(denial) => {
                if let Some(record) = record {
                    inner.recorder.push(&record.denied(&denial));
                }
                Err(Box::new(Denied { request, denial }))
            }
        }
    }

    /// Takes note of what happened by itself.
    pub fn observe(&self, event: &Event) {
        let mut inner = self.lock();
        if let Bound::To(judge) = &mut inner.bound {
            judge.observe(event);
        }
        if inner.recorder.on {
            inner.recorder.push(&Record::event(event));
        }
    }

    /// Binds the policy that the host brings, where the command line permits it and none is bound.
    ///
    /// # Errors
    /// [`SetPolicyError`]; a policy that was bound stays.
    pub fn set_policy(&self, document: &str) -> Result<(), SetPolicyError> {
        let mut inner = self.lock();
        match inner.bound {
            Bound::Never => Err(SetPolicyError::NotConfigured),
            Bound::To(_) => Err(SetPolicyError::Frozen),
            Bound::NotYet => {
                let policy = Policy::parse(document)?;
                inner.bound = Bound::To(Box::new(Judge::new(policy)));
                Ok(())
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What goes into a process or a port is left out where no rule can look at it: a number for each byte
/// takes longer than everything else.
fn input_of<R: AgentRequest>(request: &R, with_stream: bool) -> Value {
    let request_as_any = request as &dyn Any;
    if with_stream {
        request.input()
    } else if let Some(write) = request_as_any.downcast_ref::<WriteStreamRequest>() {
        WriteStreamRequest {
            container_id: write.container_id.clone(),
            exec_id: write.exec_id.clone(),
            ..Default::default()
        }
        .input()
    } else if let Some(write) = request_as_any.downcast_ref::<PortWriteRequest>() {
        PortWriteRequest { port: write.port, connection: write.connection, ..Default::default() }
            .input()
    } else {
        request.input()
    }
}
