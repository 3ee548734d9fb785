//! Who calls: a tower layer in front of every service. It needs the method's path, which tonic's interceptors do not
//! see, hence a layer.
//!
//! Without tokens every caller is the unnamed principal and may do everything; the server then refuses to listen
//! beyond loopback without TLS. A client certificate (mutual TLS) decides whether a connection is accepted at all, it
//! does not name a principal: names come from tokens only. Health and reflection are answered without a token unless
//! the options say otherwise, since probes and `grpcurl list` seldom have one.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use tonic::{Status, body::Body};
use tower::Service;

use super::{
    Peer, status,
    throttle::Throttle,
    tokens::{Caller, Grant, Tokens},
};
use crate::reason::Reason;

/// Paths of the administrative service.
const ADMIN: &str = "/walcast.v1.AdminService/";

/// Paths that need no token unless configured otherwise.
const OPEN: &[&str] = &["/grpc.health.v1.Health/", "/grpc.reflection."];

/// Failed attempts that are logged per second.
const LOGGED_PER_SECOND: u32 = 3;

/// Puts a [`Caller`], and with tokens a [`Grant`], into the extensions of each request, or answers UNAUTHENTICATED or PERMISSION_DENIED.
#[derive(Clone)]
pub struct Auth<S> {
    inner: S,
    rules: Arc<Rules>,
}

struct Rules {
    tokens: Option<Arc<Tokens>>,
    open_paths: bool,
    log: Throttle,
}

impl<S> Auth<S> {
    /// `open_paths`: health and reflection need no token.
    pub fn new(inner: S, tokens: Option<Arc<Tokens>>, open_paths: bool) -> Self {
        Auth { inner, rules: Arc::new(Rules { tokens, open_paths, log: Throttle::new(LOGGED_PER_SECOND) }) }
    }
}

impl<S> Service<Request<Body>> for Auth<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response<Body>, Infallible>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match self.rules.caller(&request) {
            Ok((caller, grant)) => {
                request.extensions_mut().insert(caller);
                if let Some(grant) = grant {
                    request.extensions_mut().insert(grant);
                }
                Either::Right(self.inner.call(request))
            }
            Err(status) => Either::Left(ready(Ok(status.into_http()))),
        }
    }
}

impl Rules {
    fn caller(&self, request: &Request<Body>) -> Result<(Caller, Option<Grant>), Status> {
        let path = request.uri().path();
        let Some(tokens) = &self.tokens else { return Ok((Caller::unnamed(), None)) };
        if self.open_paths && OPEN.iter().any(|prefix| path.starts_with(prefix)) {
            return Ok((Caller::default(), None));
        }
        let grant = bearer(request.headers())
            .and_then(|token| tokens.grant(token).ok_or("the bearer token is not known to this hub"));
        match grant {
            Ok(grant) if grant.caller().admin || !path.starts_with(ADMIN) => Ok((grant.caller().clone(), Some(grant))),
            Ok(grant) => {
                self.report(request, &format!("{} has no admin right", grant.caller().principal.name));
                Err(status::refuse(Reason::PermissionDenied, "AdminService needs a token with the right `admin`"))
            }
            Err(problem) => {
                self.report(request, problem);
                Err(status::refuse(Reason::Unauthenticated, problem))
            }
        }
    }

    fn report(&self, request: &Request<Body>, problem: &str) {
        if let Some(unreported) = self.log.pass() {
            let peer = request.extensions().get::<Peer>().map(Peer::to_string).unwrap_or_default();
            tracing::warn!(%peer, path = request.uri().path(), problem, unreported, "call refused");
        }
    }
}

/// The token of `authorization: Bearer TOKEN`; the scheme's case does not matter
/// ([RFC 9110, 11.1](https://www.rfc-editor.org/rfc/rfc9110#section-11.1)).
fn bearer(headers: &HeaderMap) -> Result<&str, &'static str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or("the call carries no `authorization: Bearer <token>`")?;
    if values.next().is_some() {
        return Err("the call carries more than one `authorization`");
    }
    match value.to_str().ok().and_then(|value| value.split_once(' ')) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err("`authorization` is not `Bearer <token>`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(values: &[&'static str]) -> Result<String, &'static str> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, http::HeaderValue::from_static(value));
        }
        bearer(&headers).map(str::to_owned)
    }

    #[test]
    fn only_one_bearer_token_counts() {
        assert_eq!(with(&["Bearer abc"]), Ok("abc".to_owned()));
        assert_eq!(with(&["bEARER   abc "]), Ok("abc".to_owned()));
        assert!(with(&[]).is_err());
        assert!(with(&["abc"]).is_err());
        assert!(with(&["Basic abc"]).is_err());
        assert!(with(&["Bearer abc", "Bearer def"]).is_err());
    }
}
