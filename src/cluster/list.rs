//! Collections, in one answer or page by page: whole ones for commands that a person runs, and for the agent what its node has.

use std::time::Duration;

use kube::api::ListParams;
use kube::core::{ObjectList, Request};
use serde::de::DeserializeOwned;

use super::{Error, api};

/// As many as kubectl asks for.
const PAGE: u32 = 500;
/// For one page, from a cluster that may be far away.
const ANSWER: Duration = Duration::from_secs(30);
/// The API server keeps the state that a list began with for some minutes. A list that takes longer begins anew.
const TRIES: usize = 3;
/// etcd takes 1.5 MiB of an object, and a tenant can have each byte of it be six in JSON: so many fit into what is read.
const FEW: u32 = 3;

/// The objects that the selector finds, as etcd has them, and the resourceVersion of that: in one answer; or, where a tenant has made his
/// pods so large that it is not read, in many small ones. Four such pods would otherwise end the lists of their node for everybody.
///
/// # Errors
/// As [`Error`]. `deadline` is each answer's.
pub(super) async fn some<T: DeserializeOwned + Clone>(
    client: &kube::Client,
    path: &str,
    fields: &str,
    metadata_only: bool,
    deadline: Duration,
) -> Result<(Vec<T>, Option<String>), Error> {
    let mut params = ListParams::default().fields(fields);
    let mut objects = Vec::new();
    loop {
        let path = Request::new(path);
        let request = if metadata_only { path.list_metadata(&params) } else { path.list(&params) };
        let request = request.map_err(api::unsendable)?;
        let list: Option<ObjectList<T>> = api::fetch_unless_too_large(client, request, deadline).await?;
        let Some(list) = list else {
            params = match params.limit {
                Some(1) => return Err(Error::Away("one object is more than is read".into())),
                Some(FEW) => params.limit(1),
                _ => params.limit(FEW),
            };
            continue;
        };
        objects.extend(list.items);
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => {
                // Those behind may be small: a tenant can make many of those, too.
                params.limit = params.limit.map(|limit| (2 * limit).min(PAGE));
                params = params.continue_token(&token);
            }
            None => return Ok((objects, list.metadata.resource_version)),
        }
    }
}

/// All objects of a collection, such as `/api/v1/pods`.
///
/// # Errors
/// As [`Error`]; `Refused` without the right to list them.
pub async fn all<T: DeserializeOwned + Clone>(
    client: &kube::Client,
    path: &str,
    metadata_only: bool,
) -> Result<Vec<T>, Error> {
    let mut tries = 0;
    loop {
        tries += 1;
        match pages(client, path, metadata_only).await {
            Err(Error::Refused(why)) if why.starts_with("410") && tries < TRIES => {}
            listed => return listed,
        }
    }
}

async fn pages<T: DeserializeOwned + Clone>(
    client: &kube::Client,
    path: &str,
    metadata_only: bool,
) -> Result<Vec<T>, Error> {
    let (mut objects, mut params) = (Vec::new(), ListParams::default().limit(PAGE));
    loop {
        let path = Request::new(path);
        let request = if metadata_only { path.list_metadata(&params) } else { path.list(&params) };
        let request = request.map_err(api::unsendable)?;
        let list: ObjectList<T> = api::fetch(client, request, ANSWER).await?;
        objects.extend(list.items);
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(objects),
        }
    }
}
