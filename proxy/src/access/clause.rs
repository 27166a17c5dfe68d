//! One clause of a policy: from whom, to what.

use std::net::IpAddr;

use heddle_api::v1;
use http::Method;
use ipnet::IpNet;

use super::Caller;
use crate::{
    config::convert::{ConvertError, each},
    path::spellings,
};

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Request<'a> {
    /// One reading of an HTTP request; without path: it has more readings than were counted.
    Http { method: &'a Method, path: Option<&'a str> },
    /// Bytes that nobody looks into.
    Opaque,
}

/// From any of these, to any of those.
#[derive(Debug)]
pub(super) struct Clause {
    /// Empty: from anyone.
    from: Vec<Source>,
    /// Empty: to anything.
    to: Vec<Operation>,
}

/// All that are not empty must match.
#[derive(Debug)]
struct Source {
    /// Namespace and name.
    service_accounts: Vec<(String, String)>,
    namespaces: Vec<String>,
    cidrs: Vec<IpNet>,
    anyone: bool,
}

/// All that are not empty must match.
#[derive(Debug)]
struct Operation {
    methods: Vec<String>,
    paths: Vec<PathPattern>,
}

/// Each in all its [`spellings`], so that no other one passes a Deny.
#[derive(Debug)]
enum PathPattern {
    Exact(Vec<String>),
    /// Written with `*` at the end.
    Prefix(Vec<String>),
}

impl Clause {
    pub(super) fn new(message: &v1::AccessClause) -> Result<Self, ConvertError> {
        Ok(Self {
            from: each("from", &message.from, Source::new)?,
            to: each("to", &message.to, Operation::new)?,
        })
    }

    /// Whether it matches; what cannot be known counts as `in_doubt` says (true for a Deny, false for an Allow).
    pub(super) fn matches(&self, caller: Caller<'_>, request: Request<'_>, in_doubt: bool) -> bool {
        (self.from.is_empty() || self.from.iter().any(|source| source.matches(caller, in_doubt)))
            && (self.to.is_empty() || self.to.iter().any(|operation| operation.matches(request, in_doubt)))
    }
}

impl Source {
    fn new(message: &v1::AccessSource) -> Result<Self, ConvertError> {
        let service_accounts =
            each("service_accounts", &message.service_accounts, |text| match text.split_once('/') {
                Some((namespace, name))
                    if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
                {
                    Ok((namespace.to_owned(), name.to_owned()))
                }
                _ => Err(ConvertError::new("", format!("{text:?} is not NAMESPACE/SERVICE-ACCOUNT"))),
            })?;
        let cidrs = each("cidrs", &message.cidrs, |text| {
            text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
                ConvertError::new("", format!("{text:?} is neither a CIDR such as 10.0.0.0/8 nor an address"))
            })
        })?;
        Ok(Self { service_accounts, namespaces: message.namespaces.clone(), cidrs, anyone: message.anyone })
    }

    fn matches(&self, caller: Caller<'_>, in_doubt: bool) -> bool {
        let names_identities = !self.service_accounts.is_empty() || !self.namespaces.is_empty();
        if !names_identities && self.cidrs.is_empty() {
            // An entry without a field that this version knows was written for a later one.
            return self.anyone || in_doubt;
        }
        let by_identity = match caller.identity {
            _ if !names_identities => true,
            None => in_doubt,
            Some(id) => {
                let account = |(namespace, name): &(String, String)| {
                    namespace == id.namespace() && name == id.service_account()
                };
                (self.service_accounts.is_empty() || self.service_accounts.iter().any(account))
                    && (self.namespaces.is_empty() || self.namespaces.iter().any(|n| n == id.namespace()))
            }
        };
        // An IPv4 caller of a dual-stack socket is written as IPv6.
        let address = caller.address.to_canonical();
        by_identity && (self.cidrs.is_empty() || self.cidrs.iter().any(|cidr| cidr.contains(&address)))
    }
}

impl Operation {
    fn new(message: &v1::AccessOperation) -> Result<Self, ConvertError> {
        let paths = each("paths", &message.paths, |text| PathPattern::new(text))?;
        let methods = each("methods", &message.methods, |text| match text.parse::<Method>() {
            Ok(method) => Ok(method.as_str().to_owned()),
            Err(_) => Err(ConvertError::new("", format!("{text:?} is not an HTTP method"))),
        });
        Ok(Self { methods: methods?, paths })
    }

    fn matches(&self, request: Request<'_>, in_doubt: bool) -> bool {
        let Request::Http { method, path } = request else { return in_doubt };
        if self.methods.is_empty() && self.paths.is_empty() {
            // As with sources: written for a later version.
            return in_doubt;
        }
        (self.methods.is_empty() || self.methods.iter().any(|m| m == method.as_str()))
            && (self.paths.is_empty()
                || path.map_or(in_doubt, |path| self.paths.iter().any(|pattern| pattern.matches(path))))
    }
}

impl PathPattern {
    fn new(text: &str) -> Result<Self, ConvertError> {
        let (path, prefix) = match text.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (text, false),
        };
        if path.contains('*') {
            return Err(ConvertError::new("", format!("{text:?} has * elsewhere than at its end")));
        }
        if !path.starts_with('/') && text != "*" {
            return Err(ConvertError::new(
                "",
                format!("{text:?} does not begin with / and would match nothing"),
            ));
        }
        let spellings = spellings(path);
        Ok(if prefix { Self::Prefix(spellings) } else { Self::Exact(spellings) })
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(spellings) => spellings.iter().any(|exact| path == exact),
            Self::Prefix(spellings) => spellings.iter().any(|prefix| path.starts_with(prefix.as_str())),
        }
    }
}
