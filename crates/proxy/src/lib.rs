//! The data plane: what `rondel-proxy` is made of.
//!
//! Read [`request`] first: the life of one request, from top to bottom, in two functions (inbound and outbound). Then
//! [`connection`], which makes a verified connection out of a socket, and [`start`], which lists every task of the process.

pub mod admin;
pub mod authenticate;
pub mod body;
pub mod clock;
pub mod connection;
pub mod control_link;
pub mod disk;
pub mod facts;
pub mod fetch;
pub mod framing;
pub mod listener;
pub mod prefixed;
pub mod reply;
pub mod request;
pub mod response;
pub mod rotate;
pub mod settings;
pub mod start;
pub mod state;
pub mod sync;
pub mod telemetry;
pub mod tunnel;
pub mod upstream;
pub mod workers;
