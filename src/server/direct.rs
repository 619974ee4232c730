//! What every endpoint asks of a request before anybody asks who sent it: that its caller itself sent it, to this very address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::header::{AUTHORIZATION, HOST, ORIGIN, REFERER};
use http::{HeaderValue, Request, Version};

use super::reply::RequestError;

/// No SDK comes near; a 4 KB token leaves room.
const MAX_HEADER_BYTES: usize = 8 * 1024;

/// Checks a request's headers in one pass, and returns what stands in Authorization. `hosts` are the addresses that we answer to.
///
/// # Errors
/// A browser, a proxy or a rebound name sent it; or it is larger than any SDK's.
pub(super) fn check<'r, B>(
    request: &'r Request<B>,
    hosts: &[IpAddr],
) -> Result<Option<&'r HeaderValue>, RequestError> {
    let (mut bytes, mut host, mut authorization) = (0, None, None);
    for (name, value) in request.headers() {
        bytes += name.as_str().len() + value.len();
        if name == HOST {
            if host.replace(value).is_some() {
                return Err(RequestError::NotDirect("two Host headers"));
            }
        } else if name == AUTHORIZATION {
            if authorization.replace(value).is_some() {
                return Err(RequestError::NotDirect("two Authorization headers"));
            }
        } else if name == ORIGIN || name == REFERER || name.as_str().starts_with("sec-fetch-") {
            return Err(RequestError::NotDirect("a browser sent this"));
        } else if name == "x-forwarded-for" || name == "forwarded" {
            return Err(RequestError::NotDirect("a proxy sent this"));
        }
    }
    if bytes > MAX_HEADER_BYTES {
        return Err(RequestError::HeadersTooLarge);
    }
    // A rebound DNS name shows in Host; only our literal addresses are ours. HTTP/1.0 needs no Host.
    match host {
        Some(host) if names_one_of(host, hosts) => {}
        None if request.version() == Version::HTTP_10 => {}
        _ => return Err(RequestError::NotDirect("the Host header names another address")),
    }
    if request.uri().authority().is_some() {
        return Err(RequestError::NotDirect("the request is meant for a proxy"));
    }
    Ok(authorization)
}

fn names_one_of(host: &HeaderValue, hosts: &[IpAddr]) -> bool {
    let Ok(host) = host.to_str() else { return false };
    // With its port, or without: SDKs leave 80 out, and so does a redirect.
    let address = match host.parse::<SocketAddr>() {
        // A zone names a link, which none of ours does.
        Ok(_) if host.contains('%') => None,
        Ok(at) => Some(at.ip()),
        Err(_) => match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(v6) => v6.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            None => host.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        },
    };
    address.is_some_and(|address| hosts.contains(&address))
}
