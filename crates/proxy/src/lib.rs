//! The data plane: what `rondel-proxy` is made of.
//!
//! Read [`request`] first: the life of one request, from top to bottom, in two functions (inbound and outbound). Then
//! [`connection`], which makes a verified connection out of a socket, and [`start`], which lists every task of the process.

pub mod facts;
pub mod framing;
