"""The report's sections: facts and what is shown of them side by side, one name each."""
