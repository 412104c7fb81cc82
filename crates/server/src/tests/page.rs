//! The page's files, and which experts are chosen.

use super::*;

#[tokio::test]
async fn the_page_needs_no_key_and_may_load_nothing_from_elsewhere() {
    let config = ServerConfig { api_keys: vec!["secret".to_owned()], ..ServerConfig::default() };
    let fixture = Fixture::with(Model::Hashes, config, EngineConfig::default());
    let (_, page) = fixture.get("/").await;
    let files = page.match_indices("=\"").filter_map(|(at, _)| page[at + 2..].split('"').next());
    let files: Vec<&str> = files.filter(|file| file.ends_with(".js") || file.ends_with(".css")).collect();
    assert_eq!(files, ["style.css", "app.js"]);
    let imported = ["experts.js", "markdown.js", "store.js", "stream.js"];
    for path in [""].into_iter().chain(files).chain(imported) {
        let response = fixture.send(Request::get(format!("/{path}")).body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
        assert!(!text(response).await.contains("https://"), "{path}");
    }
}

#[tokio::test]
async fn experts_are_watched_only_where_they_may_be() {
    let config = ServerConfig { experts: false, ..ServerConfig::default() };
    let fixture = Fixture::with(Model::Hashes, config, EngineConfig::default());
    let (status, body) = fixture.get("/v1/experts").await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{body}");
    // A model without experts ends the stream at once.
    let fixture = Fixture::new(Model::Hashes);
    let (status, body) = fixture.get("/v1/experts").await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "data: [DONE]\n\n"));
    let keys = ServerConfig { api_keys: vec!["secret".to_owned()], ..ServerConfig::default() };
    let fixture = Fixture::with(Model::Hashes, keys, EngineConfig::default());
    assert_eq!(fixture.get("/v1/experts").await.0, StatusCode::UNAUTHORIZED);
}
