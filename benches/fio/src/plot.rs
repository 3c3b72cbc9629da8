//! stub
pub(crate) fn draw(_: &std::path::Path, _: &[serde_json::Value]) -> Result<(), String> {
    Ok(())
}
