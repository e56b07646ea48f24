# The README's two commands. Both build the dev profile of the whole workspace, so that features never switch and nothing is built twice.
.PHONY: demo test prerequisites

demo: prerequisites
	cargo build --locked --workspace
	target/debug/lockstep demo

# Tests mostly wait for processes and disks: more of them at once than there are cores.
test: prerequisites
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-4} cargo test --locked --workspace

prerequisites:
	@scripts/ensure-postgres.sh
	@scripts/ensure-pgbouncer.sh
