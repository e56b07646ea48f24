# The README's two commands. Both build the dev profile of the whole workspace, so that features never switch and nothing is built twice.
.PHONY: demo test chaos prerequisites

demo: prerequisites
	cargo build --locked --workspace
	target/debug/lockstep demo

# Tests mostly wait for processes and disks: more of them at once than there are cores.
test: prerequisites
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-4} cargo test --locked --workspace

# Random faults on real processes, then an audit: 2,000 take some two hours; LOCKSTEP_FAULTS says how many, LOCKSTEP_SEED which. docs/reliability/chaos.md
chaos: prerequisites
	cargo build --locked --workspace
	LOCKSTEP_FAULTS=$${LOCKSTEP_FAULTS:-2000} cargo test --locked --workspace --test chaos whatever_dies -- --nocapture

prerequisites:
	@scripts/ensure-postgres.sh
	@scripts/ensure-pgbouncer.sh
	@scripts/ensure-faketime.sh
