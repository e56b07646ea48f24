//! The seam to S3 against real servers over TCP: our embedded one, Ceph radosgw and moto, the same behaviours on each.
//!
//! The embedded server always runs. The others run where they are installed (`scripts/ensure-conformance-servers.sh` installs them); where they
//! are not, that is said and their tests pass, unless `LOCKSTEP_CONFORMANCE=all` makes it a failure.
//!
//! - `ground`: the servers, each started once, and what a test gets of one
//! - `suite`: the checks of `lockstep_bucket::conformance`, the same that hold the twin in memory
//! - `objects`, `listings`, `refusals`: what they leave open
//! - `location`: a whole location's life through the functions that coordinators and agents use
//! - `deviations`: where servers are known to differ; fails as soon as one no longer does
//! - `random`: random operations on a server and on the twin in memory, which must answer the same
#![expect(clippy::unwrap_used, reason = "tests: what fails here fails the test, with the cause")]

mod deviations;
mod ground;
mod listings;
mod location;
mod objects;
mod random;
mod refusals;
mod suite;

/// One test for each behaviour and server.
macro_rules! on_every_server {
    ($($module:ident::$behaviour:ident),* $(,)?) => {
        on_every_server! { @server embedded, Embedded, $($module::$behaviour),* }
        on_every_server! { @server moto, Moto, $($module::$behaviour),* }
        on_every_server! { @server radosgw, Radosgw, $($module::$behaviour),* }
    };
    (@server $server:ident, $kind:ident, $($module:ident::$behaviour:ident),*) => {
        mod $server {
            $(
                #[test]
                fn $behaviour() {
                    crate::ground::on(crate::ground::Kind::$kind, stringify!($behaviour), crate::$module::$behaviour);
                }
            )*
        }
    };
}

on_every_server! {
    suite::does_all_that_a_store_must_but_for_what_is_known,
    suite::passes_the_probe_and_keeps_nothing_of_it,
    objects::odd_keys_come_back_as_they_were_written,
    objects::many_races_of_creates_have_one_winner_each,
    objects::an_upload_under_way_is_listed_until_it_is_given_up,
    listings::twenty_five_keys_come_in_three_pages_of_ten,
    listings::every_write_and_delete_is_listed_at_once,
    listings::a_host_is_not_listed_with_another_whose_number_it_begins,
    refusals::a_missing_bucket_is_store_not_found,
    refusals::a_wrong_secret_is_store_denied,
    refusals::an_unknown_access_key_is_store_denied,
    location::a_location_lives_from_its_claim_to_the_next_generation,
    location::racing_takers_make_one_owner,
    deviations::create_only_completion_of_a_multipart_upload,
    deviations::a_stream_with_a_signed_trailer,
    deviations::a_body_with_a_wrong_content_md5,
    deviations::a_body_with_a_wrong_crc32,
    deviations::if_match_with_an_etag_as_it_was_given,
    random::two_thousand_random_operations_answer_as_the_twin_does,
}
