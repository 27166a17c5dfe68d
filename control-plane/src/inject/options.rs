//! What a pod's annotations say of its sidecar. All are checked here, so that a mistake is the pod's owner's to read and
//! not a sidecar's that does not start.

use std::{collections::BTreeMap, str::FromStr};

use heddle_api::log;
use ipnet::IpNet;
use k8s_openapi::{
    api::core::v1::ResourceRequirements,
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};

use super::{INJECT, Refusal, Settings, quantity::Amount, settings::excess};

/// What every annotation of Heddle's begins with.
const PREFIX: &str = "heddle.dev/";
/// As many entries as `heddle-proxy redirect` takes.
const MOST_EXCEPTIONS: usize = 128;

const EXCLUDE_OUTBOUND_PORTS: &str = "heddle.dev/exclude-outbound-ports";
const EXCLUDE_INBOUND_PORTS: &str = "heddle.dev/exclude-inbound-ports";
const EXCLUDE_OUTBOUND_CIDRS: &str = "heddle.dev/exclude-outbound-cidrs";
const LOG_LEVEL: &str = "heddle.dev/log-level";
const WORKERS: &str = "heddle.dev/workers";
/// Annotations of resources: name, whether it is the limit, which resource.
const RESOURCES: [(&str, bool, &str); 4] = [
    ("heddle.dev/cpu-request", false, "cpu"),
    ("heddle.dev/cpu-limit", true, "cpu"),
    ("heddle.dev/memory-request", false, "memory"),
    ("heddle.dev/memory-limit", true, "memory"),
];

/// They, read.
#[derive(Clone, Debug)]
pub(super) struct Options {
    /// Flags of `heddle-proxy redirect`.
    pub redirect: Vec<String>,
    /// Flags of `heddle-proxy run`.
    pub run: Vec<String>,
    /// The sidecar's.
    pub resources: ResourceRequirements,
    /// What is odd and does no harm.
    pub warnings: Vec<String>,
}

impl Options {
    pub(super) fn read(metadata: &ObjectMeta, settings: &Settings) -> Result<Self, Refusal> {
        let none = BTreeMap::new();
        let annotations = metadata.annotations.as_ref().unwrap_or(&none);
        let mut options = Self {
            redirect: Vec::new(),
            run: Vec::new(),
            resources: settings.resources.clone(),
            warnings: Vec::new(),
        };
        for (name, value) in annotations.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
            options
                .take(name, value.trim())
                .map_err(|problem| Refusal::Annotation { name: name.clone(), problem })?;
        }
        if !annotations.contains_key(LOG_LEVEL) {
            options.flag("--log-level", &settings.log_level);
        }
        options.fits(annotations)?;
        Ok(options)
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            INJECT | heddle_api::SIDECAR_ANNOTATION => {}
            EXCLUDE_OUTBOUND_PORTS => {
                self.redirect.extend([flag("--exclude-outbound-ports", &list(value, port_range)?)]);
            }
            EXCLUDE_INBOUND_PORTS => {
                self.redirect.extend([flag("--exclude-inbound-ports", &list(value, port_range)?)]);
            }
            EXCLUDE_OUTBOUND_CIDRS => {
                self.redirect.extend([flag("--exclude-outbound-cidrs", &list(value, cidr)?)]);
            }
            LOG_LEVEL => {
                log::filter(value).map_err(|error| error.to_string())?;
                self.flag("--log-level", value);
            }
            WORKERS => match value.parse::<u16>() {
                Ok(1..=64) => self.flag("--workers", value),
                _ => return Err(format!("{value:?} is not a number of threads, 1 to 64")),
            },
            _ => match RESOURCES.into_iter().find(|(known, ..)| *known == name) {
                Some((_, is_limit, resource)) => self.resource(is_limit, resource, value)?,
                None => self.warnings.push(format!("{name} is no annotation that Heddle knows")),
            },
        }
        Ok(())
    }

    /// Kubernetes would refuse the pod too, and name a container that its owner has not written.
    fn fits(&self, annotations: &BTreeMap<String, String>) -> Result<(), Refusal> {
        let Some((resource, request, limit)) = excess(&self.resources) else { return Ok(()) };
        let annotated = |is_limit| {
            let names = RESOURCES.into_iter().find(|&(_, of, what)| (of, what) == (is_limit, resource));
            names.map(|(name, ..)| name).filter(|name| annotations.contains_key(*name))
        };
        let (name, problem) = match (annotated(false), annotated(true)) {
            (Some(name), Some(other)) => (name, format!("{request} is more than {other}, {limit}")),
            (Some(name), None) => {
                let why = "which all sidecars have unless annotated";
                (
                    name,
                    format!(
                        "{request} is more than the limit of {limit}, {why}: set heddle.dev/{resource}-limit too"
                    ),
                )
            }
            (None, Some(name)) => {
                let why = "which all sidecars make unless annotated";
                (
                    name,
                    format!(
                        "{limit} is less than the request of {request}, {why}: set heddle.dev/{resource}-request too"
                    ),
                )
            }
            // The settings were read by `settings::resources`.
            (None, None) => return Ok(()),
        };
        Err(Refusal::Annotation { name: name.to_owned(), problem })
    }

    fn flag(&mut self, name: &str, value: &str) {
        self.run.push(flag(name, value));
    }

    fn resource(&mut self, is_limit: bool, resource: &str, value: &str) -> Result<(), String> {
        if Amount::parse(value).is_none() {
            return Err(format!("{value:?} is not a quantity such as 100m or 256Mi"));
        }
        let resources = &mut self.resources;
        let side = if is_limit { &mut resources.limits } else { &mut resources.requests };
        side.get_or_insert_default().insert(resource.to_owned(), Quantity(value.to_owned()));
        Ok(())
    }
}

fn flag(name: &str, value: &str) -> String {
    format!("{name}={value}")
}

/// A list with commas, each entry checked and written anew.
fn list(value: &str, check: fn(&str) -> Result<String, String>) -> Result<String, String> {
    let entries: Vec<&str> = value.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
    if entries.is_empty() {
        return Err("it is empty: leave it away".to_owned());
    }
    if entries.len() > MOST_EXCEPTIONS {
        return Err(format!("{} entries, and at most {MOST_EXCEPTIONS} are taken", entries.len()));
    }
    let checked: Result<Vec<String>, String> = entries.into_iter().map(check).collect();
    Ok(checked?.join(","))
}

fn port_range(text: &str) -> Result<String, String> {
    let wrong = || format!("{text:?} is not a port or a range such as 8000-8010");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let ends = [first, last].map(u16::from_str);
    match ends {
        [Ok(first @ 1..), Ok(last)] if first <= last => Ok(text.to_owned()),
        _ => Err(wrong()),
    }
}

fn cidr(text: &str) -> Result<String, String> {
    let net = IpNet::from_str(text).map_err(|_| format!("{text:?} is not a CIDR such as 10.0.0.0/8"))?;
    Ok(net.trunc().to_string())
}
