//! Users come, change and go.

use hidb::ErrorCode;
use hidb::auth::{Permission, Role};

use crate::cell::{TestCell, assert_clean, tool, volume_of};
use crate::fixture::*;

#[tokio::test]
async fn changes_of_users_count_at_once_and_survive_a_crash() {
    let site = Site::new(&[]);
    let cell = site.start(&[]);
    let root = site.client(&cell, "root").await;
    root.add_user("ada", Role::Reader, Some(PASSWORD), &[("t".into(), Permission::Read)]).await.unwrap();
    root.create_table("t", &crate::cell::schema(), 1).await.unwrap();
    let ada = site.client(&cell, "ada").await;
    ada.describe("t").await.unwrap();
    let denied = |error: hidb::Error| assert_eq!(error.code, ErrorCode::PermissionDenied, "{error}");
    denied(ada.users().await.unwrap_err());
    denied(ada.add_user("eve", Role::Admin, Some(PASSWORD), &[]).await.unwrap_err());
    denied(ada.alter_user("ada", Some(Role::Admin), None).await.unwrap_err());
    denied(ada.grant("ada", "*", Some(Permission::Read)).await.unwrap_err());
    denied(ada.drop_table("t", false).await.unwrap_err());

    // On the connection that is open already.
    root.grant("ada", "t", None).await.unwrap();
    denied(ada.describe("t").await.unwrap_err());
    root.alter_user("ada", Some(Role::Writer), None).await.unwrap();
    root.grant("ada", "new", Some(Permission::Write)).await.unwrap();
    ada.create_table("new", &crate::cell::schema(), 1).await.unwrap();

    root.alter_user("ada", None, Some("another password")).await.unwrap();
    let error = connect(&cell, site.credentials("ada", PASSWORD)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    cell.kill();
    let cell = site.start(&[]);
    let ada = connect(&cell, site.credentials("ada", "another password")).await.unwrap();
    ada.describe("new").await.unwrap();
    let root = site.client(&cell, "root").await;
    let listed: Vec<(String, Vec<String>)> = root
        .users()
        .await
        .unwrap()
        .into_iter()
        .map(|user| (user.name, user.grants.into_iter().map(|grant| grant.table).collect()))
        .collect();
    assert_eq!(listed, [("ada".to_string(), vec!["new".to_string()]), ("root".into(), vec![])]);

    // A removed user's connection is worth nothing, not even for a new user of that name.
    root.remove_user("ada").await.unwrap();
    assert_eq!(ada.describe("new").await.unwrap_err().code, ErrorCode::Unauthenticated);
    root.add_user("ada", Role::Admin, Some(PASSWORD), &[]).await.unwrap();
    assert_eq!(ada.describe("new").await.unwrap_err().code, ErrorCode::Unauthenticated);
    root.remove_user("ada").await.unwrap();
    let last = root.remove_user("root").await.unwrap_err();
    assert_eq!(last.code, ErrorCode::UserConflict);
    assert!(cell.stop().success());
    assert_clean(site.path());
}

#[test]
fn the_tool_changes_users_of_a_stopped_cell_only() {
    let site = Site::new(&[]);
    assert_eq!(site.user_tool(&["ls"]).unwrap(), "root admin\n");
    assert!(
        site.user_tool(&["add", "root", "--role", "reader", "--password-file", "-"]).unwrap_err().contains("already")
    );
    site.user_tool(&["add", "root", "--role", "admin", "--password-file", "-", "--replace"]).unwrap();
    assert!(site.user_tool(&["rm", "root"]).unwrap_err().contains("last administrator"));
    site.user_tool(&["add", "ada", "--role", "reader", "--certificate", "--read", "t"]).unwrap();
    site.user_tool(&["set", "ada", "--role", "writer"]).unwrap();
    assert_eq!(site.user_tool(&["ls"]).unwrap(), "ada writer\nroot admin\n");
    site.user_tool(&["rm", "ada"]).unwrap();
    assert!(site.user_tool(&["rm", "ada"]).unwrap_err().contains("no user"));
    let cell = site.start(&[]);
    let error = site.user_tool(&["ls"]).unwrap_err();
    assert!(error.contains("in use"), "{error}");
    assert!(cell.stop().success());
}

#[test]
fn a_rebuilt_manifest_has_no_users_and_lets_nobody_in() {
    let site = Site::new(&[]);
    let volume = volume_of(site.path());
    let manifest = site.path().join("volume.meta/manifest");
    std::fs::remove_dir_all(&manifest).unwrap();
    let error = TestCell::try_start_secure(site.path(), &[]).err().unwrap();
    assert!(error.contains("not its users"), "{error}");
    let (code, out, err) = tool(&["rebuild", "--volume", volume.to_str().unwrap()]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("users"), "{out}");
    let cell = site.start(&[]);
    let error = site.wire(&cell).log_in("root", PASSWORD).unwrap_err();
    assert_eq!(error.code, ErrorCode::Unauthenticated as u32);
    cell.stop();
    site.user_tool(&["add", "root", "--role", "admin", "--password-file", "-"]).unwrap();
    let cell = site.start(&[]);
    site.session(&cell, "root");
}
