//! gRPC-web, for pages in browsers, which can neither speak native gRPC nor choose HTTP/2. The
//! [translation](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md) is `tonic_web`'s: messages are framed as in gRPC,
//! so they pass as they are, and trailers become a last frame. In front of it stands who may ask
//! ([CORS](https://fetch.spec.whatwg.org/#http-cors-protocol)).
//!
//! A page of an origin that is not listed is refused here, rather than only left without the headers that let it read the
//! answer. That also holds off a page whose own host name was rebound to this address: to its browser the hub then is the
//! page's own origin, and only the `Origin` header tells. Cookies are never asked for; who calls is said by a token.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
        ACCESS_CONTROL_REQUEST_METHOD, CONTENT_TYPE, ORIGIN, VARY,
    },
};
use tonic::body::Body;
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::{Layer, Service};

use super::{Peer, throttle::Throttle};

/// What a refusal without messages says itself in; scripts may read no other headers unless told.
const EXPOSED: HeaderValue = HeaderValue::from_static("grpc-status,grpc-message,grpc-status-details-bin");

/// Seconds for which a browser need not ask again. Chromium keeps no answer longer.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");

/// Refused pages that are logged per second.
const LOGGED_PER_SECOND: u32 = 3;

/// Whose pages may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origins(Vec<String>);

impl Origins {
    /// `*`, or origins as browsers send them: `scheme://host[:port]` in lower case, without the scheme's own port.
    pub fn new(origins: impl IntoIterator<Item = String>) -> Self {
        Origins(origins.into_iter().collect())
    }

    fn allow(&self, origin: &HeaderValue) -> bool {
        self.0.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes())
    }
}

/// In the extensions of requests whose messages all come before the response, as over gRPC-web.
#[derive(Clone, Copy, Debug)]
pub struct OneWay;

/// See the module.
#[derive(Clone)]
pub struct Web<S> {
    inner: GrpcWebService<S>,
    origins: Arc<Origins>,
    log: Arc<Throttle>,
}

impl<S> Web<S> {
    /// In front of everything, since a browser asks whether it may ask without a token.
    pub fn new(inner: S, origins: Arc<Origins>) -> Self {
        Web { inner: GrpcWebLayer::new().layer(inner), origins, log: Arc::new(Throttle::new(LOGGED_PER_SECOND)) }
    }

    fn refuse(&self, request: &Request<Body>, origin: &HeaderValue) -> Response<Body> {
        if let Some(unreported) = self.log.pass() {
            let peer = request.extensions().get::<Peer>().map(Peer::to_string).unwrap_or_default();
            tracing::warn!(%peer, ?origin, unreported, "call of a web page refused: its origin is not in grpc.web_origins");
        }
        empty(StatusCode::FORBIDDEN)
    }
}

impl<S> Service<Request<Body>> for Web<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Answer, <GrpcWebService<S> as Service<Request<Body>>>::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Body>>::poll_ready(&mut self.inner, cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if is_grpc_web(request.headers()) {
            request.extensions_mut().insert(OneWay);
        }
        let Some(origin) = request.headers().get(ORIGIN).cloned() else {
            return Either::Right(self.inner.call(request));
        };
        if !self.origins.allow(&origin) {
            let refused = self.refuse(&request, &origin);
            return Either::Left(Box::pin(async { Ok(refused) }));
        }
        if request.method() == Method::OPTIONS && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
            let allowed = preflight(request.headers(), origin);
            return Either::Left(Box::pin(async { Ok(allowed) }));
        }
        let response = self.inner.call(request);
        Either::Left(Box::pin(async move {
            let mut response = response.await?;
            let headers = response.headers_mut();
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
            headers.insert(VARY, HeaderValue::from_static("origin"));
            Ok(response)
        }))
    }
}

/// An answer to a browser.
type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

fn is_grpc_web(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc-web"))
}

/// The answer to a browser's question whether a page may ask. Headers are metadata, which may be anything.
fn preflight(asked: &HeaderMap, origin: HeaderValue) -> Response<Body> {
    let mut response = empty(StatusCode::NO_CONTENT);
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST"));
    if let Some(names) = asked.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    headers.insert(VARY, HeaderValue::from_static("origin,access-control-request-headers"));
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
