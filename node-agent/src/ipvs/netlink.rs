//! A conversation with IPVS over generic netlink.
//!
//! IPVS lists virtual services and destinations there, but not connections: those are read from `/proc`, see
//! [`super::connection`]. Nothing is ever flushed: `IPVS_CMD_FLUSH` would take everybody's virtual services away.

use nftfleet_domain::service::{Family, Vip};
use nix::errno::Errno;

use super::IpvsError;
use super::service::{
    Destination, Forwarding, Frontend, VirtualService, address, address_bytes, family_number, protocol,
};
use crate::dataplane::netlink::message::{
    Received, attribute, begin_nested, end_attribute, end_message, find, flag, text,
};
use crate::dataplane::netlink::socket::{Socket, SocketError};

/// The kernel's own family, which tells of the others (`GENL_ID_CTRL`).
const CONTROL: u16 = 0x10;

/// `CTRL_CMD_GETFAMILY`.
const GET_FAMILY: u8 = 3;

/// How IPVS calls its family (`IPVS_GENL_NAME`).
const NAME: &str = "IPVS";

/// How often a listing is tried again while virtual services come and go.
const TRIES: usize = 8;

/// `IPVS_CMD_*`.
mod command {
    pub const DELETE_SERVICE: u8 = 3;
    pub const GET_SERVICE: u8 = 4;
    pub const SET_DESTINATION: u8 = 6;
    pub const GET_DESTINATION: u8 = 8;
}

/// `IPVS_CMD_ATTR_*`.
mod part {
    pub const SERVICE: u16 = 1;
    pub const DESTINATION: u16 = 2;
}

/// `IPVS_SVC_ATTR_*`.
mod service {
    pub const FAMILY: u16 = 1;
    pub const PROTOCOL: u16 = 2;
    pub const ADDRESS: u16 = 3;
    pub const PORT: u16 = 4;
    pub const MARK: u16 = 5;
    pub const SCHEDULER: u16 = 6;
    pub const FLAGS: u16 = 7;
    pub const TIMEOUT: u16 = 8;
}

/// `IPVS_DEST_ATTR_*`.
mod destination {
    pub const ADDRESS: u16 = 1;
    pub const PORT: u16 = 2;
    pub const FORWARDING: u16 = 3;
    pub const WEIGHT: u16 = 4;
    pub const UPPER: u16 = 5;
    pub const LOWER: u16 = 6;
    pub const FAMILY: u16 = 11;
}

/// IPVS of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Ipvs {
    socket: Socket,
    sequence: u32,
}

impl Ipvs {
    /// Opens a conversation with the kernel, which need not have IPVS.
    ///
    /// # Errors
    /// There is no generic netlink.
    pub fn open() -> Result<Self, IpvsError> {
        Ok(Self {
            socket: Socket::generic().map_err(IpvsError::netlink("open"))?,
            sequence: 0,
        })
    }

    /// The number of IPVS' family; none if IPVS is not loaded. All families are listed: asked for one by its name, the kernel
    /// may load the module.
    fn family(&mut self) -> Result<Option<u16>, IpvsError> {
        let request = self.request(CONTROL, GET_FAMILY, flag::DUMP, |_| {});
        let mut number = None;
        let each = |message: Received<'_>| {
            if find(message.body(), 2).map(text).as_deref() == Some(NAME) {
                number = find(message.body(), 1).and_then(half);
            }
        };
        self.socket
            .dump(&request, each)
            .map_err(IpvsError::netlink("list the families of generic netlink"))?;
        Ok(number)
    }

    /// Whether the kernel has IPVS.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn is_loaded(&mut self) -> Result<bool, IpvsError> {
        Ok(self.family()?.is_some())
    }

    /// All virtual services, sorted; none if IPVS is not loaded.
    ///
    /// The kernel does not say when a listing of IPVS met a change on its way, so it is read until it comes out alike twice.
    ///
    /// # Errors
    /// The listing failed, or never came out alike.
    pub fn services(&mut self) -> Result<Vec<VirtualService>, IpvsError> {
        settled(|| self.list_services())
    }

    fn list_services(&mut self) -> Result<Vec<VirtualService>, IpvsError> {
        let mut services = Vec::new();
        let each = |message: Received<'_>| services.push(read_service(message));
        self.list(command::GET_SERVICE, "list the virtual services", |_| {}, each)?;
        let services: Option<Vec<_>> = services.into_iter().collect();
        let mut services = services.ok_or(IpvsError::Garbled("a virtual service"))?;
        services.sort();
        services.dedup();
        Ok(services)
    }

    /// The destinations of a virtual service, sorted; none if it is not there.
    ///
    /// # Errors
    /// As [`Ipvs::services`].
    pub fn destinations(&mut self, of: &Frontend) -> Result<Vec<Destination>, IpvsError> {
        settled(|| {
            let mut destinations = Vec::new();
            let each = |message: Received<'_>| destinations.push(read_destination(of, message));
            let what = "list the destinations of a virtual service";
            self.list(command::GET_DESTINATION, what, |bytes| write_frontend(bytes, of), each)?;
            let destinations: Option<Vec<_>> = destinations.into_iter().collect();
            let mut destinations = destinations.ok_or(IpvsError::Garbled("a destination"))?;
            destinations.sort();
            destinations.dedup();
            Ok(destinations)
        })
    }

    /// Deletes one virtual service. Tells if it was there still.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn delete(&mut self, frontend: &Frontend) -> Result<bool, IpvsError> {
        self.change(command::DELETE_SERVICE, format!("delete {frontend}"), |bytes| {
            write_frontend(bytes, frontend);
        })
    }

    /// Gives a destination another weight; all else of it stays. Tells if it was there still.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn set_weight(&mut self, of: &Frontend, changed: &Destination, weight: u32) -> Result<bool, IpvsError> {
        let what = format!("change the weight of {} of {of}", changed.address);
        self.change(command::SET_DESTINATION, what, |bytes| {
            write_frontend(bytes, of);
            write_destination(bytes, changed, weight);
        })
    }

    fn change(&mut self, command: u8, what: String, body: impl FnOnce(&mut Vec<u8>)) -> Result<bool, IpvsError> {
        let Some(family) = self.family()? else {
            return Ok(false);
        };
        let request = self.request(family, command, flag::ACKNOWLEDGE, body);
        match self.socket.commit(&request, self.sequence, self.sequence) {
            Ok(()) => Ok(true),
            Err(SocketError::Refused { source, .. }) if is_absent(source.raw_os_error()) => Ok(false),
            Err(source) => Err(IpvsError::Netlink { what, source }),
        }
    }

    fn list(
        &mut self,
        command: u8,
        what: &str,
        body: impl FnOnce(&mut Vec<u8>),
        each: impl FnMut(Received<'_>),
    ) -> Result<(), IpvsError> {
        let Some(family) = self.family()? else {
            return Ok(());
        };
        let request = self.request(family, command, flag::DUMP, body);
        match self.socket.dump(&request, each) {
            // What was asked for went meanwhile.
            Err(SocketError::Refused { source, .. }) if is_absent(source.raw_os_error()) => Ok(()),
            done => done.map_err(IpvsError::netlink(what)),
        }
    }

    /// A message of generic netlink.
    fn request(&mut self, family: u16, command: u8, flags: u16, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(family.to_ne_bytes());
        bytes.extend((flags | flag::REQUEST).to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        // The command, the version of both families' interfaces, and two bytes of nothing.
        bytes.extend([command, 1, 0, 0]);
        body(&mut bytes);
        end_message(&mut bytes, 0);
        bytes
    }
}

/// Reads until two listings in a row are alike.
fn settled<T: PartialEq>(mut read: impl FnMut() -> Result<T, IpvsError>) -> Result<T, IpvsError> {
    let mut last = None;
    for _ in 0..TRIES {
        match read() {
            Err(IpvsError::Netlink {
                source: SocketError::Interrupted,
                ..
            }) => last = None,
            Ok(found) if last.as_ref() == Some(&found) => return Ok(found),
            Ok(found) => last = Some(found),
            Err(error) => return Err(error),
        }
    }
    Err(IpvsError::Restless)
}

/// IPVS says that a virtual service or destination is not there with either.
fn is_absent(number: Option<i32>) -> bool {
    [Errno::ESRCH, Errno::ENOENT]
        .iter()
        .any(|errno| number == Some(*errno as i32))
}

fn write_frontend(bytes: &mut Vec<u8>, frontend: &Frontend) {
    let start = begin_nested(bytes, part::SERVICE);
    match frontend {
        Frontend::Vip(vip) => {
            attribute(
                bytes,
                service::FAMILY,
                &family_number(Family::of(vip.address)).to_ne_bytes(),
            );
            attribute(
                bytes,
                service::PROTOCOL,
                &u16::from(vip.protocol.number()).to_ne_bytes(),
            );
            attribute(bytes, service::ADDRESS, &address_bytes(vip.address));
            attribute(bytes, service::PORT, &vip.port.to_be_bytes());
        }
        Frontend::Mark { family, mark } => {
            attribute(bytes, service::FAMILY, &family_number(*family).to_ne_bytes());
            attribute(bytes, service::MARK, &mark.to_ne_bytes());
        }
    }
    end_attribute(bytes, start);
}

fn write_destination(bytes: &mut Vec<u8>, of: &Destination, weight: u32) {
    let start = begin_nested(bytes, part::DESTINATION);
    let family = family_number(Family::of(of.address.ip()));
    attribute(bytes, destination::ADDRESS, &address_bytes(of.address.ip()));
    attribute(bytes, destination::PORT, &of.address.port().to_be_bytes());
    attribute(bytes, destination::FAMILY, &family.to_ne_bytes());
    attribute(bytes, destination::FORWARDING, &of.forwarding.number().to_ne_bytes());
    attribute(bytes, destination::WEIGHT, &weight.to_ne_bytes());
    attribute(bytes, destination::UPPER, &of.thresholds.0.to_ne_bytes());
    attribute(bytes, destination::LOWER, &of.thresholds.1.to_ne_bytes());
    end_attribute(bytes, start);
}

fn read_service(message: Received<'_>) -> Option<VirtualService> {
    let body = find(message.body(), part::SERVICE)?;
    let family = read_family(find(body, service::FAMILY)?)?;
    let frontend = match find(body, service::MARK) {
        Some(mark) => Frontend::Mark {
            family,
            mark: word(mark)?,
        },
        None => Frontend::Vip(Vip {
            address: address(family, find(body, service::ADDRESS)?)?,
            protocol: protocol(half(find(body, service::PROTOCOL)?)?)?,
            port: port(find(body, service::PORT)?)?,
        }),
    };
    Some(VirtualService {
        frontend,
        scheduler: find(body, service::SCHEDULER).map(text)?,
        flags: word(find(body, service::FLAGS)?)?,
        timeout: word(find(body, service::TIMEOUT)?)?,
    })
}

/// Kernels before 3.18 don't say the destination's family: it is the service's.
fn read_destination(of: &Frontend, message: Received<'_>) -> Option<Destination> {
    let body = find(message.body(), part::DESTINATION)?;
    let family = match find(body, destination::FAMILY) {
        Some(family) => read_family(family)?,
        None => match of {
            Frontend::Vip(vip) => Family::of(vip.address),
            Frontend::Mark { family, .. } => *family,
        },
    };
    let number = |kind| find(body, kind).and_then(word);
    Some(Destination {
        address: (
            address(family, find(body, destination::ADDRESS)?)?,
            port(find(body, destination::PORT)?)?,
        )
            .into(),
        weight: number(destination::WEIGHT)?,
        forwarding: Forwarding::from_number(number(destination::FORWARDING)?),
        thresholds: (number(destination::UPPER)?, number(destination::LOWER)?),
    })
}

fn read_family(value: &[u8]) -> Option<Family> {
    let number = half(value)?;
    Family::BOTH.into_iter().find(|family| family_number(*family) == number)
}

fn half(value: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(*value.first_chunk::<2>()?))
}

fn word(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*value.first_chunk::<4>()?))
}

fn port(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*value.first_chunk::<2>()?))
}
