//! Between our ordered field list and the `http` crate's map, which the `h2` crate speaks.
//! Nothing else in the proxy touches `http` types. HTTP/2 names are lower case by definition;
//! the map keeps the order of values of one name but not across names.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use weft_http::{HeaderList, Method, RequestHead, ResponseHead, Target, rules};

/// The list as a map. Fields the map cannot hold (they cannot come from our parsers) are left out.
pub(crate) fn to_map(headers: &HeaderList) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(headers.len());
    for header in headers.iter() {
        let name = HeaderName::from_bytes(header.name);
        let value = HeaderValue::from_bytes(header.value);
        if let (Ok(name), Ok(value)) = (name, value) {
            map.append(name, value);
        }
    }
    map
}

/// The map as a list.
pub(crate) fn from_map(map: &HeaderMap) -> HeaderList {
    let bytes: usize = map.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    // Room for what the request path adds (request id, trace, peer metadata) without growing.
    let mut headers = HeaderList::with_capacity(map.len() + 8, bytes + 512);
    for (name, value) in map {
        headers.append(name.as_str(), value.as_bytes());
    }
    headers
}

/// What an HTTP/2 client asked for.
///
/// # Errors
/// When the pseudo fields and fields make no valid request.
pub(crate) fn request_head(
    request: &http::Request<h2::RecvStream>,
) -> Result<RequestHead, rules::H2Error> {
    let uri = request.uri();
    let shared = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let pseudo = rules::RequestPseudo {
        method: Some(shared(request.method().as_str())),
        scheme: uri.scheme_str().map(shared),
        authority: uri.authority().map(|authority| shared(authority.as_str())),
        path: uri.path_and_query().map(|path| shared(path.as_str())),
        protocol: None,
    };
    rules::request_from_h2(pseudo, from_map(request.headers()))
}

/// A request for an HTTP/2 upstream; the head has been through `rules` for HTTP/2 already.
pub(crate) fn request(head: &RequestHead) -> Result<http::Request<()>, http::Error> {
    let mut uri = http::Uri::builder();
    if head.method != Method::Connect {
        uri = uri.scheme(head.scheme.as_str());
    }
    if let Some(authority) = &head.authority {
        uri = uri.authority(&**authority);
    }
    match &head.target {
        Target::Path(path) => uri = uri.path_and_query(&**path),
        Target::Asterisk => uri = uri.path_and_query("*"),
        Target::Authority => {}
    }
    let mut request = http::Request::builder()
        .method(head.method.as_bytes())
        .uri(uri.build()?)
        .version(http::Version::HTTP_2)
        .body(())?;
    *request.headers_mut() = to_map(&head.headers);
    Ok(request)
}

/// The head of an HTTP/2 upstream's response.
///
/// # Errors
/// When its fields are not allowed in HTTP/2.
pub(crate) fn response_head<B>(
    response: &http::Response<B>,
) -> Result<ResponseHead, rules::H2Error> {
    rules::response_from_h2(response.status().as_u16(), from_map(response.headers()))
}

/// A response for an HTTP/2 client; `None` for a status the `http` crate does not know (over 999).
pub(crate) fn response(head: &ResponseHead) -> Option<http::Response<()>> {
    let mut response = http::Response::new(());
    *response.status_mut() = http::StatusCode::from_u16(head.status).ok()?;
    *response.version_mut() = http::Version::HTTP_2;
    *response.headers_mut() = to_map(&head.headers);
    Some(response)
}
