//! What a browser finds at the server's address: a page to chat with. Its files lie beside this one and are compiled in.

use std::sync::Arc;

use axum::{
    Router,
    http::{HeaderName, header},
    routing::get,
};

use crate::app::App;

/// Nothing but what is the server's own is loaded, run or asked, whatever an answer has in it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Path, type and content.
const FILES: [(&str, &str, &str); 7] = [
    ("/", HTML, include_str!("index.html")),
    ("/style.css", CSS, include_str!("style.css")),
    ("/app.js", SCRIPT, include_str!("app.js")),
    ("/experts.js", SCRIPT, include_str!("experts.js")),
    ("/markdown.js", SCRIPT, include_str!("markdown.js")),
    ("/store.js", SCRIPT, include_str!("store.js")),
    ("/stream.js", SCRIPT, include_str!("stream.js")),
];

/// Needs no key: it holds nothing that anybody may not know. What the page asks for needs one.
pub(crate) fn router() -> Router<Arc<App>> {
    FILES.into_iter().fold(Router::new(), |router, (path, content_type, content)| {
        router.route(path, get(move || async move { (headers(content_type), content) }))
    })
}

fn headers(content_type: &'static str) -> [(HeaderName, &'static str); 5] {
    [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Another version of the program has another page.
        (header::CACHE_CONTROL, "no-cache"),
    ]
}
