// Command gohttp is a plain Go program: net/http with its defaults.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
)

func main() {
	for _, url := range os.Args[1:] {
		res, err := http.Get(url) //nolint:noctx,gosec // what a plain program does
		if err != nil {
			log.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		if err != nil {
			log.Fatal(err)
		}
		_ = res.Body.Close()
		fmt.Println(res.Proto, res.Status, res.Header)
		fmt.Println(string(b))
	}
}
