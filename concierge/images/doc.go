// Package images keeps the guest images that were taken into use: copies of
// what the package with the guest image had installed at the time, so that the
// package can be replaced under running VMs and a new image can be given up
// for the one before it. It knows files and no VMs.
package images
