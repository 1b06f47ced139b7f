//! What machines download, to enrol and to upgrade: the installer and the agent's binary, with ETag (SHA-256) and size.

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
    sha256: [u8; 32],
    /// The same in hexadecimal.
    etag: HeaderValue,
    length: u64,
}

/// What there is to download; what is missing answers 404 and says why.
pub struct Downloads {
    install_script: Option<Arc<Download>>,
    agent: Option<Arc<Download>>,
}

impl Downloads {
    pub async fn load(install_script: &Path, agent_binary: &Path) -> Self {
        Self {
            install_script: load(install_script, "text/x-shellscript; charset=utf-8").await,
            agent: load(agent_binary, "application/octet-stream").await,
        }
    }

    /// Of the agent that is served.
    pub fn agent_sha256(&self) -> Option<[u8; 32]> {
        self.agent.as_ref().map(|agent| agent.sha256)
    }

    /// `/install.sh` and `/lifeboat-agent`.
    pub fn routes(self) -> Router {
        Router::new()
            .route("/install.sh", get(serve).with_state(self.install_script))
            .route("/lifeboat-agent", get(serve).with_state(self.agent))
    }
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
        let sha256 = <[u8; 32]>::try_from(sum.finish().as_ref()).map_err(io::Error::other)?;
        let etag = HeaderValue::try_from(format!("\"{}\"", hex::encode(sha256))).map_err(io::Error::other)?;
        Ok(Self { path: path.to_owned(), content_type, sha256, etag, length })
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
