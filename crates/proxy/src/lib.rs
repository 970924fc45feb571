//! The data plane: what `rondel-proxy` is made of.
//!
//! Read [`request`] first: the life of one request, from top to bottom, in two functions (inbound and outbound). Then
//! [`accept`], which makes a connection with a known caller out of a socket, [`connection`], which serves it, and [`start`], which lists every task of the process.

pub mod accept;
pub mod admin;
pub mod anchor;
pub mod application;
pub mod application_svid;
pub mod authenticate;
pub mod body;
pub mod buffer;
pub mod clock;
pub mod connection;
pub mod control_link;
pub mod country;
pub mod detect;
pub mod disk;
mod ending;
pub mod exchange;
pub mod facts;
pub mod fetch;
pub mod framing;
pub mod gate;
pub mod http1;
pub mod http2;
pub mod introspect;
pub mod io;
pub mod issuers;
pub mod kept;
pub mod listener;
pub mod mux;
pub mod outside;
pub mod prefixed;
pub mod probe;
pub mod proof;
pub mod rehearsal;
pub mod reply;
pub mod request;
pub mod response;
pub mod revocable;
pub mod rotate;
pub mod settings;
pub mod shadow;
#[cfg(test)]
mod sizes;
pub mod standing;
pub mod start;
pub mod state;
pub mod sync;
pub mod telemetry;
pub mod tools;
pub mod tunnel;
pub mod turns;
pub mod upgrade;
pub mod upstream;
pub mod workers;
pub mod workload_api;
mod workload_authority;
pub mod workload_client;
pub mod workload_jwt;
