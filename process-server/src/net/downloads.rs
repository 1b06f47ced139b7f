//! What enrolling machines download: the installer and the agent's binary, with ETag and size.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use bytes::Bytes;
use tokio::{fs::File, io::AsyncReadExt as _};

/// Read at a time, so that a download takes little memory.
const PIECE_BYTES: usize = 64 << 10;

/// A file of the image, known by its checksum since the start.
#[derive(Debug)]
struct Download {
    path: PathBuf,
    content_type: &'static str,
    etag: HeaderValue,
    length: u64,
}

/// Routes for `/install.sh` and `/lifeboat-agent`. A file that is missing answers 404 and says why.
pub async fn routes(install_script: &Path, agent_binary: &Path) -> Router {
    Router::new()
        .route(
            "/install.sh",
            get(serve).with_state(load(install_script, "text/x-shellscript; charset=utf-8").await),
        )
        .route("/lifeboat-agent", get(serve).with_state(load(agent_binary, "application/octet-stream").await))
}

async fn load(path: &Path, content_type: &'static str) -> Option<Arc<Download>> {
    match Download::load(path, content_type).await {
        Ok(download) => Some(Arc::new(download)),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "nothing to download: machines cannot be enrolled from here");
            None
        }
    }
}

impl Download {
    async fn load(path: &Path, content_type: &'static str) -> io::Result<Self> {
        let mut file = File::open(path).await?;
        let mut sum = ring::digest::Context::new(&ring::digest::SHA256);
        let mut length = 0;
        while let Some(piece) = next_piece(&mut file).await? {
            length += piece.len() as u64;
            sum.update(&piece);
        }
        let etag =
            HeaderValue::try_from(format!("\"{}\"", hex::encode(sum.finish()))).map_err(io::Error::other)?;
        Ok(Self { path: path.to_owned(), content_type, etag, length })
    }
}

async fn serve(State(download): State<Option<Arc<Download>>>, headers: HeaderMap) -> Response {
    let Some(download) = download else {
        return (StatusCode::NOT_FOUND, "this process server's image holds no such file\n").into_response();
    };
    if headers.get(header::IF_NONE_MATCH) == Some(&download.etag) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, download.etag.clone())]).into_response();
    }
    let file = match File::open(&download.path).await {
        Ok(file) => file,
        Err(error) => {
            tracing::error!(path = %download.path.display(), %error, "download not readable");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    };
    let pieces = futures::stream::try_unfold(file, |mut file| async move {
        Ok::<_, io::Error>(next_piece(&mut file).await?.map(|piece| (piece, file)))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(download.content_type)),
        (header::CONTENT_LENGTH, HeaderValue::from(download.length)),
        (header::ETAG, download.etag.clone()),
    ];
    (headers, Body::from_stream(pieces)).into_response()
}

async fn next_piece(file: &mut File) -> io::Result<Option<Bytes>> {
    let mut piece = vec![0; PIECE_BYTES];
    let read = file.read(&mut piece).await?;
    piece.truncate(read);
    Ok((read > 0).then(|| piece.into()))
}
