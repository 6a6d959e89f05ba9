//! Judges agent requests by a Rego policy, and explains denials.
//!
//! The host is distrusted: each of its requests is data that a policy looks at before anybody acts on
//! it. [`Gate::judge`] takes the request and gives back [`Verified`](nacre_trust::Verified) with the
//! witness [`PolicyAllowed`], or a [`Denied`] with reasons; the agent's handlers take nothing else.
//! No method is exempt, nothing turns the gate off, and a guest without a policy denies everything.
//!
//! A document is Rego in the package `agent_policy`: a rule named as the request's message decides,
//! `input` is the request as JSON. That is the contract of Kata Containers' agent, and documents made
//! for it are evaluated unchanged, with their state in `data.pstate`. What this engine adds:
//!
//! - `policy_data.version`: the document is data for the rules library of this guest image, which is
//!   then added to it; the data is at `data.nacre.policy`, and what the named runtimes add to
//!   specifications at `data.nacre.runtime`.
//! - `input.nacre.state`: what was carried out so far (see `state.rs`): `sandbox` (its id or null),
//!   `namespace`, `pod_name`, `sealed` (an application container exists or existed), `containers`
//!   (by id: `name`, `pod`, `phase`), `live` (phases by name) and `ended` (names that ran to an end).
//!   Denied and failed requests leave no trace in it.
//! - `GuestApiRequest`: what a container asks of the guest's own endpoint (`guest_api.rs`).
//! - `ImageUserRequest`: what a container would run as, where the host's request stands for "the user of its
//!   image" (`image_user.rs`). `input.nacre.image_user` says that this agent asks it.
//! - `<Request>_problems`: a set of objects that explain a denial (see `denial.rs`).
//!
//! Never: a request's text is logged, a request that was denied changes any state, or a policy that
//! is bound is replaced.

#![forbid(unsafe_code)]

mod denial;
mod gate;
mod guest_api;
mod image_user;
mod input;
mod judge;
mod library;
mod policy;
mod record;
mod state;

pub use denial::{Denial, LONGEST_DENIAL, Problem};
pub use gate::{Denied, Gate, PolicyAllowed, SetPolicyError};
pub use guest_api::{GuestApi, GuestApiRequest};
pub use image_user::ImageUserRequest;
pub use input::{AgentRequest, REQUESTS};
pub use judge::{Event, Judge, Ticket};
pub use library::{RULES, UnknownRuntime, VERSION, merge_runtimes, runtimes, unite_profiles};
pub use policy::{LARGEST_DOCUMENT, Policy, PolicyError};
pub use record::{Happening, Line, Outcome};
