//! Which names the server answers to. A page of any site can have its own name resolve to this machine, and its scripts then
//! ask this server as if it were that site's (DNS rebinding): only the request's `Host` tells. So a server that is there for
//! its own machine alone answers only to names that cannot belong to a site.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, Method, header, uri::Authority},
    middleware::Next,
    response::Response,
};

use crate::{ApiError, ServerConfig, app::App};

/// The names that requests may ask for.
pub(crate) struct Hosts {
    /// None: by any name.
    named: Option<Vec<String>>,
    /// Whether pages of other origins are for the headers of CORS to keep out.
    has_cors: bool,
}

impl Hosts {
    /// For a server that listens at `address`. One that other machines reach has names that it does not know, and looks at
    /// them only where it is told some.
    pub(crate) fn new(config: &ServerConfig, address: IpAddr) -> Self {
        let is_any = config.allowed_hosts.iter().any(|name| name == "*");
        let is_checked =
            !is_any && (address.to_canonical().is_loopback() || !config.allowed_hosts.is_empty());
        let own = [config.host.clone(), address.to_string()];
        let named = || config.allowed_hosts.iter().chain(&own).map(|name| plain(name)).collect();
        Self { named: is_checked.then(named), has_cors: !config.cors_origins.is_empty() }
    }

    /// Whether a request with this method, target and these headers may be answered.
    ///
    /// # Errors
    /// 403.
    fn check(&self, method: &Method, target: Option<&str>, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(named) = &self.named else { return Ok(()) };
        let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
        // Who sends none is no browser.
        let host = text(header::HOST);
        for host in [target, host.as_deref()].into_iter().flatten() {
            if !admits(named, host) {
                return Err(ApiError::unknown_host(host));
            }
        }
        let origin = text(header::ORIGIN).filter(|_| !self.has_cors && !method.is_safe());
        if let Some(origin) = origin {
            let is_own = origin.split_once("://").is_some_and(|(_, authority)| admits(named, authority));
            if !is_own {
                return Err(ApiError::unknown_origin(&origin));
            }
        }
        Ok(())
    }
}

/// Whether this is one of the names, or one that means this machine everywhere; with or without a port.
fn admits(named: &[String], authority: &str) -> bool {
    let Ok(authority) = authority.parse::<Authority>() else { return false };
    // What stands before an @ is for the server that is asked, and no browser sends it.
    let name = plain(authority.host());
    let is_loopback = name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    let is_local = name == "localhost" || name.ends_with(".localhost");
    is_loopback || is_local || named.contains(&name)
}

/// A name as names are compared: without a port, brackets, the final dot and capital letters.
pub(crate) fn plain(name: &str) -> String {
    let bare = name.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(address, _)| address);
    let host = bare.unwrap_or_else(|| match name.split_once(':') {
        // An address of IPv6 without brackets has several colons.
        Some((host, port)) if !port.contains(':') => host,
        _ => name,
    });
    host.trim_end_matches('.').to_ascii_lowercase()
}

/// Refuses requests that mean another host.
pub(crate) async fn check(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let target = request.uri().authority().map(Authority::as_str);
    app.hosts.check(request.method(), target, request.headers())?;
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(address: &str, allowed: &[&str], cors: &[&str]) -> Hosts {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let config = ServerConfig {
            host: address.to_owned(),
            allowed_hosts: owned(allowed),
            cors_origins: owned(cors),
            ..ServerConfig::default()
        };
        Hosts::new(&config, address.parse().unwrap())
    }

    fn admits(hosts: &Hosts, method: &Method, headers: &[(header::HeaderName, &str)]) -> bool {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        hosts.check(method, None, &headers).is_ok()
    }

    #[test]
    fn a_server_of_this_machine_answers_to_its_names_only() {
        let hosts = hosts("127.0.0.1", &["Chat.Example.org", "box:8080"], &[]);
        let known = [
            "localhost",
            "LOCALHOST:8080",
            "localhost.",
            "chat.localhost:1",
            "127.0.0.1:8080",
            "127.1.2.3",
            "[::1]",
            "[::1]:8080",
            "[::ffff:127.0.0.1]:8080",
            "chat.example.org:443",
            "box",
            "box:9",
        ];
        for host in known {
            assert!(admits(&hosts, &Method::GET, &[(header::HOST, host)]), "{host}");
        }
        let unknown = [
            "evil.example",
            "evil.example:8080",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "notlocalhost",
            "",
            "10.0.0.1",
            "0.0.0.0:8080",
            "[::2]",
            "example.org",
            "localhost:80:80",
            "evil.example#localhost",
            " ",
        ];
        for host in unknown {
            assert!(!admits(&hosts, &Method::GET, &[(header::HOST, host)]), "{host}");
        }
        assert!(admits(&hosts, &Method::POST, &[]), "HTTP/1.0 has no Host, and browsers always do");
        let refused = hosts.check(&Method::GET, Some("evil.example:80"), &HeaderMap::new());
        assert!(refused.unwrap_err().message().contains("--allowed-host evil.example"));
    }

    #[test]
    fn pages_of_other_sites_change_nothing_here() {
        let own = hosts("127.0.0.1", &[], &[]);
        let asks = |hosts: &Hosts, method, origin| {
            admits(hosts, method, &[(header::HOST, "localhost:8080"), (header::ORIGIN, origin)])
        };
        for origin in ["http://localhost:8080", "http://127.0.0.1:3000", "https://[::1]"] {
            assert!(asks(&own, &Method::POST, origin), "{origin}");
        }
        for origin in ["http://evil.example", "https://evil.example:8080", "null", "", "file://"] {
            assert!(!asks(&own, &Method::POST, origin), "{origin}");
            assert!(
                asks(&own, &Method::GET, origin),
                "what it may not read is kept from it without CORS: {origin}"
            );
        }
        assert!(asks(&hosts("127.0.0.1", &[], &["*"]), &Method::POST, "http://evil.example"));
    }

    #[test]
    fn a_server_for_others_answers_to_all_names_until_it_is_told_some() {
        let host = |name| [(header::HOST, name)];
        assert!(admits(&hosts("0.0.0.0", &[], &[]), &Method::GET, &host("any.example")));
        let named = hosts("10.0.0.1", &["box"], &[]);
        assert!(!admits(&named, &Method::GET, &host("any.example")));
        for name in ["box:8080", "10.0.0.1:8080", "localhost"] {
            assert!(admits(&named, &Method::GET, &host(name)), "{name}");
        }
        assert!(admits(&hosts("::1", &["*"], &[]), &Method::GET, &host("any.example")));
    }
}
