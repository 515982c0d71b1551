package main

import "github.com/auberge-vm/auberge/guest/garcon"

// parts makes what knows applications.
func (o *serverOptions) parts(garcon.Tools) (garcon.Parts, error) {
	return garcon.Parts{}, nil
}
