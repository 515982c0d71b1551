// Package vmc is the command-line client of Auberge's services: each command
// sends what a person means as one D-Bus call and shows the answer as text,
// or as JSON for scripts. It has no rights of its own.
package vmc
