//! What goes over nftfleet's wire.
//!
//! - [`types`]: the JSON bodies, one file per resource
//! - [`endpoint`]: each endpoint declared once (method, path, parameters, request, response, errors); the server mounts
//!   exactly these, the agent builds its requests from them, and the document is made of them
//! - [`problem`]: the RFC 9457 error body and the closed list of problem codes
//! - [`convert`]: wire values to domain values and back
//! - [`openapi`]: the OpenAPI 3.1 document, written to `openapi.json` by the binary `write-openapi`

pub mod convert;
pub mod endpoint;
pub mod openapi;
pub mod problem;
pub mod types;
