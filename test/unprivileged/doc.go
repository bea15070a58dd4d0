// Package unprivileged runs checks as a user whom modes of files bind, also
// where the tests run as root.
package unprivileged
